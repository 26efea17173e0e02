"""Two programs that take turns: each does one unit of work, says how it went, and waits until it may go on.

So both sides of a benchmark keep their own process and environment, and no neighbour on the machine slows only one.
The standard library alone: it runs in both environments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Turns:
    """A side's end: stdout carries one JSON line per unit; whatever libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._wait()

    def done(self, unit: str, **facts: Any) -> None:
        """Say that a unit is done and wait for the next turn."""
        self._out.write(json.dumps({"unit": unit, **facts}) + "\n")
        self._out.flush()
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():  # the driver is gone
            raise SystemExit(0)


class Side:
    """The driver's end: a process that works only while it has its turn.

    Attributes:
        name: for tables.
        records: what each unit said; `turn_s` is the wall time of its turn, everything included.
    """

    def __init__(self, name: str, command: list[str], *, log: Path, env: dict[str, str], cwd: Path) -> None:
        self.name, self.records, self._log = name, [], log
        self.records: list[dict[str, Any]]
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env, cwd=cwd
            )

    def turn(self) -> dict[str, Any]:
        """Let the side do its next unit; return what it says of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.perf_counter()
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = "\n".join(self._log.read_text(errors="replace").splitlines()[-25:])
            raise SystemExit(f"{self.name} stopped with exit code {self._process.wait()}:\n{said}")
        record = {**json.loads(line), "turn_s": time.perf_counter() - started}
        self.records.append(record)
        return record

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
