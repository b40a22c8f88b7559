"""Runs a soak: starts the two sides, looks at their processes all the time, and collects what they report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.environment import ROOT
from tests.support.processes import lives
from tests.support.waiting import comes

from .processes import Watch, family
from .report import Parameters, Side

_MARK = "soak: "  # as side.py writes it
_STARTS_S = 300.0
_ENDS_S = 180.0


class SideError(RuntimeError):
    """A side has not done what it was started for."""


class _Running:
    """A side at work: its process, and what it has reported. A thread reads; `side` is whole once it has ended.

    Args:
        name: for messages.
        options: for side.py.
        errors: a file for what it prints besides.
    """

    def __init__(self, name: str, options: dict[str, Any], errors: Path) -> None:
        self.name, self.side = name, Side()
        self.driver: int | None = None
        self.begun_s = 0.0
        with errors.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.side", json.dumps(options)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, name=f"reads {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        last_s = 0.0
        for line in self.process.stdout:
            if not line.startswith(_MARK):
                continue
            said = json.loads(line.removeprefix(_MARK))
            at_s = said.pop("at") - self.begun_s
            if "ready" in said:
                self.driver = said["ready"]
            elif "done" in said:
                self.side.end = said
            else:
                self.side.add(at_s, said["figures"])
                for name, taken in said["calls"].items():
                    # They came between the last report and this one.
                    step_s = (at_s - last_s) / len(taken)
                    spread = [(last_s + number * step_s, each) for number, each in enumerate(taken)]
                    self.side.calls.setdefault(name, []).extend(spread)
                last_s = at_s

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise SideError(f"{self.name} has ended with status {self.process.returncode} before it began")
        return self.driver is not None

    def go(self, now_s: float) -> None:
        assert self.process.stdin is not None
        self.begun_s = now_s
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def wait(self, within_s: float) -> None:
        self.process.wait(within_s)
        self._reader.join(10)
        if self.process.returncode or not self.side.end:
            raise SideError(f"{self.name} has ended with status {self.process.returncode}")

    def stop(self) -> None:
        """End it if it is still at work, with its Ray."""
        members = family(self.process.pid) if self.process.poll() is None else []
        if members:
            self.process.terminate()
            self.process.wait(30)
            comes(lambda: not any(map(lives, members)), 10)
        for pid in filter(lives, members):
            os.kill(pid, signal.SIGKILL)  # Ray does not end all when its driver is ended from without


def run(parameters: Parameters, errors: Path, say: Callable[[str], None] = print) -> tuple[Side, Side]:
    """Do a soak.

    Args:
        parameters: what it is.
        errors: a file for what Ray and the sides print besides.
        say: is told of the progress.

    Returns:
        Our side, and the control.

    Raises:
        SideError: one of them did not work.
    """
    options = {
        **asdict(parameters),
        "each_s": parameters.each_s,
        "warm_up_s": parameters.warm_up_s,
    }
    first = "control" if parameters.against_itself else "ours"
    sides: list[_Running] = []
    errors.write_bytes(b"")
    try:
        for name in (first, "control"):  # one after the other: Ray gives up a start that takes 30 s
            sides.append(_Running(name, {**options, "side": name}, errors))
            if not comes(sides[-1].is_ready, _STARTS_S):
                raise SideError(f"{name} is not ready after {_STARTS_S:g} s")
        watches = [Watch(side.driver) for side in sides if side.driver is not None]
        begun = time.monotonic()
        for side in sides:
            side.go(begun)
        _watch(parameters, sides, watches, begun, say)
        for side in sides:
            side.wait(_ENDS_S)
    finally:
        for side in sides:
            side.stop()
    return sides[0].side, sides[1].side


def _watch(
    parameters: Parameters, sides: list[_Running], watches: list[Watch], begun: float, say: Callable[[str], None]
) -> None:
    """Look at the processes until the time is over. `Side.series` has no other writer for these names."""
    said_s = 0.0
    while (now_s := time.monotonic() - begun) < parameters.seconds:
        for side, watch in zip(sides, watches, strict=True):
            if side.process.poll() is not None:
                raise SideError(f"{side.name} has ended with status {side.process.returncode}")
            side.side.add(now_s, watch.look())
        if now_s - said_s > 60:
            said_s = now_s
            say(f"{now_s:.0f} s of {parameters.seconds:g}")
        time.sleep(max(0.0, min(parameters.each_s, parameters.seconds - now_s)))
