from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from kbench import console


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 100 columns shows."""
    shown = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(console, "err", Console(file=shown, force_terminal=True, width=100))
    return shown


def test_bars_inside_bars_share_the_screen(screen: io.StringIO) -> None:
    with console.bar("outer [work]") as outer:
        outer(1, 4)
        with console.bar("inner") as inner:
            inner(2, 3)
            outer(2, 4, "outer, other words")
            console._running[0].refresh()
        outer(3, 4)
    assert console._running == []
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "outer [work]" in text
    *_, both = (block for block in text.split("outer") if "inner" in block)
    assert both.startswith(", other words")
    assert "2/4" in both
    assert "2/3" in both


def test_a_bar_that_ends_in_an_error_leaves_the_screen(screen: io.StringIO) -> None:
    with pytest.raises(ValueError, match="lost"), console.bar("outer"), console.bar("inner"):
        raise ValueError("lost")
    assert console._running == []


def test_what_is_no_terminal_is_shown_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with console.bar("work") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0382, "0.03820"), (17.74, "17.74000"), (0.0, "0.00000"), (0.001, "0.00100"), (1.25e-12, "1.25e-12"),
     (-0.000123456, "-0.00012346"), (1.9e29, "1.9e+29"), (9_999_999.5, "9999999.50000")],
)  # fmt: skip
def test_a_score_in_small_or_large_units_is_shown(value: float, text: str) -> None:
    assert console.score_text(value) == text
