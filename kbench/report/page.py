"""One HTML page: pictures, tables and the sentences between them, without a network and without scripts.

A page is a title, a few facts and sections; `render` is a pure function of them. To show something new, add a
section where the page is composed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        file: path relative to the page.
        caption: what it shows.
    """

    file: str
    caption: str = ""


@dataclass(frozen=True)
class Grid:
    """A table of the page.

    Attributes:
        rows: records with the same keys.
        caption: what they are.
        file: the same as CSV, relative to the page, or empty.
        most: rows that are shown; the CSV has them all.
    """

    rows: Records
    caption: str = ""
    file: str = ""
    most: int = 200


@dataclass(frozen=True)
class Section:
    """A chapter of the page.

    Attributes:
        title: its heading.
        text: what to look for, in a sentence or two.
        parts: pictures and tables, in order.
    """

    title: str
    text: str = ""
    parts: Sequence[Picture | Grid] = ()


@dataclass(frozen=True)
class Fact:
    """A number at the top of the page.

    Attributes:
        name: what it is.
        value: as it is shown.
        note: a few more words.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: heading and window title.
        subtitle: one line under it.
        facts: numbers at the top.
        sections: chapters; tables without rows and chapters of nothing else, or of nothing, are left out.
        warnings: what the reader must know first.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()
    warnings: Sequence[str] = field(default=())


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5d6b78; --line: #e3e8ed; --paper: #fff; --back: #f4f6f8;
  --accent: #2f6db5; --bar: #d7e5f5; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa7b3; --line: #2c3641; --paper: #1a2129;
  --back: #12171d; --accent: #7fb2ec; --bar: #27405c; --warn: #43391c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
header, main, footer { max-width: 1180px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 34px; }
h1 { font-size: 27px; margin: 0; letter-spacing: -.01em; }
header p { color: var(--soft); margin: 4px 0 18px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 18px 0 0; font-size: 14px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; }
.fact, section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.fact { padding: 12px 16px; }
.fact b { display: block; font-size: 23px; font-weight: 650; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: 13px; }
.fact span.name { text-transform: uppercase; letter-spacing: .05em; font-size: 11px; }
.warn { background: var(--warn); border-radius: 10px; padding: 10px 16px; margin: 14px 0 0; }
section { padding: 18px 22px 22px; margin: 20px 0; }
h2 { font-size: 19px; margin: 0 0 2px; }
section > p { color: var(--soft); margin: 0 0 14px; max-width: 78ch; }
.parts { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start; }
figure { margin: 0; max-width: 100%; overflow-x: auto; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; border: 1px solid var(--line); }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; }
td.share { background: linear-gradient(var(--bar), var(--bar)) no-repeat left / var(--part) 100%; }
footer { color: var(--soft); font-size: 13px; padding-bottom: 40px; }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
_SHARES = ("share", "recall", "precision", "f1", "auc", "accuracy", "iou", "dice")  # 0..1, shown with a bar


def render(page: Page) -> str:
    """Return the page as HTML; pictures and CSVs are linked by relative path."""
    sections = [filled for section in page.sections if (filled := _filled(section)) is not None]
    links = "".join(f'<a href="#part-{number}">{escape(part.title)}</a>' for number, part in enumerate(sections))
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in page.warnings)
    body = "".join(_section(number, section) for number, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{_STYLE}</style></head>\n<body><header><h1>{escape(page.title)}</h1>"
        f'<p>{escape(page.subtitle)}</p><div class="facts">{"".join(map(_fact, page.facts))}</div>{warnings}'
        f"<nav>{links}</nav></header>\n<main>{body}</main>\n"
        "<footer>Written by kbench from the files of this run; every table is also a CSV beside its picture.</footer>"
        "</body></html>\n"
    )


def _filled(section: Section) -> Section | None:
    """Return a section without its empty tables; None where nothing is left to show."""
    parts = [part for part in section.parts if isinstance(part, Picture) or part.rows]
    return replace(section, parts=parts) if parts or (section.text and not section.parts) else None


def _fact(fact: Fact) -> str:
    return (
        f'<div class="fact"><span class="name">{escape(fact.name)}</span><b>{escape(fact.value)}</b>'
        f"<span>{escape(fact.note)}</span></div>"
    )


def _section(number: int, section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    parts = "".join(_picture(part) if isinstance(part, Picture) else _grid(part) for part in section.parts)
    title = escape(section.title)
    return f'\n<section id="part-{number}"><h2>{title}</h2>{text}<div class="parts">{parts}</div></section>'


def _picture(picture: Picture) -> str:
    caption, file = escape(picture.caption), escape(picture.file)
    shown = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'\n<figure>{shown}<a href="{file}"><img src="{file}" alt="{caption}" loading="lazy"></a></figure>'


def _grid(grid: Grid) -> str:
    names = list(grid.rows[0])
    number = {
        name: any(isinstance(row.get(name), int | float) for row in grid.rows)
        and not any(isinstance(row.get(name), str | bool) for row in grid.rows)
        for name in names
    }
    head = "".join(f"<th{_class(number[name])}>{escape(_words(name))}</th>" for name in names)
    rows = "".join(
        f"<tr>{''.join(_cell(name, row.get(name), number=number[name]) for name in names)}</tr>"
        for row in grid.rows[: grid.most]
    )
    link = f' <a href="{escape(grid.file)}">CSV</a>' if grid.file else ""
    left = len(grid.rows) - grid.most
    more = f" The first {grid.most:,} of {len(grid.rows):,} rows." if left > 0 else ""
    caption = f"<figcaption>{escape(grid.caption)}{escape(more)}{link}</figcaption>"
    return f"\n<figure>{caption}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></figure>"


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def _cell(name: str, value: Any, *, number: bool) -> str:
    if name in _SHARES and isinstance(value, float):
        return f'<td class="number share" style="--part: {100 * min(max(value, 0), 1):.0f}%">{value:.3f}</td>'
    return f"<td{_class(number)}>{escape(shown(value))}</td>"


def shown(value: Any) -> str:
    """Return a value as text: numbers with five digits, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)
