from __future__ import annotations

from html.parser import HTMLParser

from kbench.report.page import Fact, Grid, Page, Picture, Section, render, shown

ROWS = [
    {"class": "<b>", "rows": 1234, "recall": 0.5, "auc": None, "note": ""},
    {"class": "x", "rows": 2, "recall": 1.0},
]
PAGE = Page(
    "Dogs & cats: <run>",
    "a 'line'",
    facts=[Fact("score", "0.5", "interval")],
    sections=[
        Section("First", "text", [Picture("pictures/a b.png", "cap<tion"), Grid(ROWS, "rows", "pictures/rows.csv")]),
        Section("Empty"),
        Section("Second", "", [Grid([], "nothing")]),
    ],
    warnings=["folds 1 & 2 are missing"],
)


class Reader(HTMLParser):
    """Holds tags against each other; collects links and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def read(page: Page) -> Reader:
    reader = Reader()
    reader.feed(render(page))
    assert reader.open == []
    return reader


def test_a_page_is_well_formed_and_texts_are_escaped() -> None:
    found = read(PAGE)
    assert "Dogs & cats: <run>" in found.text
    assert "cap<tion" in found.text
    assert "run" not in found.tags


def test_a_page_asks_nothing_of_a_network_and_runs_no_script() -> None:
    found = read(PAGE)
    assert "script" not in found.tags
    assert "link" not in found.tags
    assert all(link.startswith(("#", "pictures/")) for link in found.links)
    assert "http" not in render(PAGE)
    assert "url(" not in render(PAGE)


def test_sections_with_nothing_in_them_are_left_out() -> None:
    found = read(PAGE)
    assert "First" in found.text
    assert "Empty" not in found.text


def test_tables_show_numbers_with_bars_dashes_for_none_and_their_csv() -> None:
    text = render(PAGE)
    assert "1,234" in text
    assert "--part: 50%" in text
    assert "–" in text
    assert '<a href="pictures/rows.csv">CSV</a>' in text


def test_long_tables_say_how_much_is_left_to_the_csv() -> None:
    rows = [{"class": str(k)} for k in range(30)]
    text = render(Page("t", sections=[Section("s", "", [Grid(rows, "all", "a.csv", most=10)])]))
    assert "The first 10 of 30 rows" in text
    assert text.count("<tr>") == 11


def test_values_are_shown_shortly() -> None:
    assert [shown(value) for value in (None, True, 1234567, 0.123456789, "x")] == [
        "–",
        "yes",
        "1,234,567",
        "0.12346",
        "x",
    ]


def test_chapters_of_empty_tables_are_left_out() -> None:
    page = Page("p", sections=[
        Section("Nothing", "what would be here", [Grid([], "no rows", "a.csv")]), Section("Words", "alone"),
        Section("Some", "", [Grid([], "no rows", "b.csv"), Grid(ROWS, "rows", "c.csv")]),
    ])  # fmt: skip
    found = read(page)
    assert "Nothing" not in found.text
    assert "Words" in found.text
    assert found.links == ["#part-0", "#part-1", "c.csv"]
