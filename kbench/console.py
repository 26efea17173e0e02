"""What the user sees: progress, tables, errors and the next command.

Progress and notes go to stderr; results go to stdout, as text or, with `--json`, as one JSON object.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from kbench.errors import KbenchError

err = Console(stderr=True, highlight=False, soft_wrap=True)
logging.getLogger("kbench").addHandler(logging.NullHandler())  # what our loggers say is shown as a note
_WIDE = 200  # columns of a table that goes to a file or a pipe
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)


_EVERY_S = 1.0  # between lines of one bar
_lines = False


def tell_in_lines(on: bool) -> None:
    """Have everything that goes to stderr be one JSON object a line, or what a person reads."""
    global _lines
    _lines = on


def told_in_lines() -> bool:
    """Return whether stderr is JSON lines."""
    return _lines


def event(name: str, /, **fields: Any) -> None:
    """Tell an event on stderr, where it is JSON lines."""
    if _lines:
        line = json.dumps({"event": name, **fields}, ensure_ascii=False, default=str)
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def epoch(fold: int | str, record: Mapping[str, Any]) -> None:
    """Tell that a fold finished an epoch; `record` has `stage`, `epoch`, `epochs` and `score`, as its log does."""
    event("epoch", fold=fold, stage=record["stage"], step=record["epoch"] + 1, of=record["epochs"],
          seconds_left=_left_s(record), score=record["score"])  # fmt: skip


def _left_s(record: Mapping[str, Any]) -> float | None:
    seconds = record.get("seconds")
    return None if seconds is None else round(seconds * (record["epochs"] - record["epoch"] - 1), 1)


def note(text: str) -> None:
    """Say something about the work, on stderr."""
    if _lines:
        return event("note", text=text)
    err.print(escape(text))


def warn(text: str) -> None:
    """Say something the user should act on, on stderr."""
    if _lines:
        return event("warning", text=text)
    err.print(f"[yellow]warning:[/] {escape(text)}")


def wrote(path: object) -> None:
    """Say what was written."""
    if _lines:
        return event("wrote", path=str(path))
    err.print(f"wrote {escape(str(path))}")


def next_command(command: str) -> None:
    """Say what to type next."""
    if _lines:
        return event("next", command=command)
    err.print(f"next: [bold]{escape(command)}[/]")


def result(text: str) -> None:
    """Print a result on stdout."""
    out.print(escape(text))


def show_json(content: Any) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(content, ensure_ascii=False, indent=2, default=str, allow_nan=False) + "\n")
    sys.stdout.flush()


def show_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Print rows on stdout; the columns are the keys of the first row."""
    if not rows:
        return
    table = Table(title=escape(title) or None, title_justify="left")
    for name, sample in rows[0].items():
        number = isinstance(sample, int | float)
        table.add_column(escape(str(name)), justify="right" if number else "left", no_wrap=number)
    for row in rows:
        table.add_row(*(escape(_cell(row.get(name))) for name in rows[0]))
    out.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "0" if abs(value) < 1e-12 else f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or "-"
    if isinstance(value, dict):
        return "  ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return str(value)


def score_text(value: float) -> str:
    """Return a score with five decimals, or five digits where these would show nothing of it or too much."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e7
    return f"{value:.5f}" if plain else f"{value:.5g}"


def show_score(score: Mapping[str, Any], where: str) -> None:
    """Print a score with its interval; what was fitted, and how much better it looks on its own rows, too.

    Args:
        score: with `metric`, `score`, `low`, `high`; `plain`, `optimism`, `nested_by` and `decision` or
            `postprocess` where something was fitted.
        where: the end of the line, such as `over 1,000 rows`.
    """
    text = f"{score['metric']} {_interval(score, 'score')}"
    if "plain" not in score:
        result(f"{text} {where}")
        return
    plain = score["plain"]
    part = "fifth of the only fold" if score.get("nested_by") == "fifth" else "fold"
    result(f"{text} {where}, nested: each {part} with what was found on the others")
    text = f"{score['metric']} {_interval(plain, 'value')}"
    result(f"{text} on the rows it was found on, optimism {score_text(score['optimism'])}")
    if "decision" in score:
        result(f"found: {_cell(score['decision']['found'])}")
    if "postprocess" in score:
        gain, params = score["postprocess"]["gain"], score["postprocess"]["params"]
        way = "tuning gains" if not score["postprocess"].get("pruned") else "tuning is left out: it gains"
        result(f"{way} {gain['value']:+.5f} [{gain['low']:+.5f}, {gain['high']:+.5f}], found: {_cell(params)}")


def _interval(score: Mapping[str, Any], name: str) -> str:
    return f"{score_text(score[name])} [{score_text(score['low'])}, {score_text(score['high'])}]"


def show_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as CSV on stdout."""
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def show_error(error: KbenchError) -> None:
    """Print an error in its three parts."""
    if _lines:
        return event("error", kind=type(error).__name__, what=error.what, expected=error.expected, next=error.todo)
    err.print(f"[red]error:[/] {escape(error.what)}")
    err.print(f"  expected: {escape(error.expected)}")
    err.print(f"  next: [bold]{escape(error.todo)}[/]")


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, what: str | None = None) -> None:
        """Show how far the work is, and, if given, other words beside the bar."""


@contextmanager
def bar(what: str) -> Iterator[Advance]:
    """Show a progress bar with the time that is left; the block calls `advance(done, total)`. Bars may be nested."""
    if _lines:
        yield _told_steps(what)
        return
    with _progress() as progress:
        task = progress.add_task(escape(what), total=None)

        def advance(done: int, total: int, what: str | None = None) -> None:
            words = None if what is None else escape(what)
            progress.update(task, completed=done, total=total or None, description=words)

        try:
            yield advance
        finally:
            progress.remove_task(task)


def _told_steps(what: str) -> Advance:
    """Return what tells steps as events: the first, the last, and one a second between."""
    began, last, name = time.monotonic(), [float("-inf")], what

    def advance(done: int, total: int, what: str | None = None) -> None:
        now = time.monotonic()
        if now - last[0] >= _EVERY_S or (total and done >= total):
            last[0] = now
            left = round((now - began) / done * (total - done), 1) if done and total else None
            event("progress", stage=what or name, step=done, of=total or None, seconds_left=left, score=None)

    return advance


_running: list[Progress] = []  # the one that is on the screen: a terminal shows one at a time


@contextmanager
def _progress() -> Iterator[Progress]:
    if _running:
        yield _running[-1]
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        _running.append(progress)
        try:
            yield progress
        finally:
            _running.pop()


class Status:
    """One line on stderr that is rewritten: what is going on right now. Silent when stderr is no terminal."""

    def __init__(self) -> None:
        self._status = err.status("") if sys.stderr.isatty() else None

    def __enter__(self) -> Status:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status:
            self._status.stop()

    def show(self, text: str) -> None:
        """Show a text until the next one."""
        if self._status:
            self._status.update(escape(text))
