"""How the demo looks: headings and tables on standard output, progress bars on standard error, and there only if it is a terminal.

What always holds: with `--json` standard output gets one JSON document and nothing else; nothing here decides anything.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .figures import HandOver, Outcome, Way

_CHANNELS = {"sqlite": "a SQLite file", "redis": "a Redis server"}


class Screen:
    """Where the demo shows itself.

    Args:
        as_json: print the outcome as JSON, and nothing for people but progress bars and errors.
    """

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._out = Console(quiet=as_json, highlight=False, soft_wrap=False)
        self._err = Console(stderr=True, highlight=False)

    def say(self, text: str = "") -> None:
        """Print a paragraph."""
        self._out.print(escape(text))

    def heading(self, text: str) -> None:
        """Print a heading."""
        self._out.print()
        self._out.print(f"[bold]{escape(text)}[/bold]")

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show that something takes time."""
        if self._err.is_terminal:
            with self._err.status(text):
                yield
        else:
            yield

    @contextmanager
    def steps(self, total: int) -> Iterator[Callable[[str], None]]:
        """Show a bar that counts steps, and goes when they are done; gives the function that says what the next step is about."""
        with self._progress(MofNCompleteColumn(), transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda text: progress.update(task, advance=1, description=text)

    @contextmanager
    def transfer(self, total_bytes: int) -> Iterator[Callable[[str, int], None]]:
        """Show two bars, of bytes sent and bytes checked; gives the function that is told of them."""
        with self._progress(DownloadColumn()) as progress:
            tasks = {
                "sent": progress.add_task("put and sent by the producer", total=total_bytes),
                "checked": progress.add_task("checked by the consumer", total=total_bytes),
            }
            yield lambda which, size: progress.advance(tasks[which], size)

    def three_ways(self, ways: tuple[Way, ...]) -> None:
        """Print part 1's table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("in the store", no_wrap=True)
        for way in ways:
            table.add_column({"pickle": "plain pickle"}.get(way.way, way.way), justify="right")
        for text, cell in _ROWS:
            table.add_row(text, *(cell(way) for way in ways))
        table.add_section()
        table.add_row("[bold]so[/bold]", *(f"[bold]{_verdict(way)}[/bold]" for way in ways))
        self._out.print(table)

    def hand_over(self, done: HandOver) -> None:
        """Print the closing table."""
        self.say(
            f"The producer was Ray job {done.producer_job}, the consumer Ray job {done.consumer_job}; between them was "
            f"{_CHANNELS[done.channel]}. It took {done.duration_s:.1f} s."
        )
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        cells = {
            "files": f"{done.checked_files:,}",
            "bytes": _size(done.bytes),
            "mismatches": f"{done.mismatches:,}",
            "store: before": _size(done.store_before_bytes),
            "peak": _size(done.store_peak_bytes),
            "after": _size(done.store_after_bytes),
            "leases": f"{done.live_leases:,}",
        }
        for name in cells:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(*cells.values())
        self._out.print(table)

    def outcome(self, outcome: Outcome) -> None:
        """Print how it ended."""
        if self._as_json:
            json.dump(dataclasses.asdict(outcome), sys.stdout, indent=2)
            print(flush=True)
        elif outcome.ok:
            self._out.print(
                "[bold green]Good:[/bold green] every byte arrived, and nothing stayed behind. "
                f"{outcome.duration_s:.0f} s in all."
            )
        for problem in outcome.problems:
            # A file's name may hold what no encoding has.
            shown = problem.encode("utf-8", "backslashreplace").decode()
            self._err.print(f"[bold red]Not good:[/bold red] {escape(shown)}", soft_wrap=True)

    def _progress(self, figures: Any, *, transient: bool = False) -> Progress:
        return Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            figures,
            console=self._err,
            transient=transient,
            disable=not self._err.is_terminal,
        )


def _size(count: int) -> str:
    """A number of bytes for people, as short as a table wants it."""
    return f"{count} B" if count < 1000 else decimal(count)


def _came_back(way: Way) -> str:
    if way.refused:
        return "-"
    return f"{way.came_back} of {way.objects}"


def _released(way: Way) -> str:
    return "-" if way.released_bytes is None else _size(way.released_bytes)


def _verdict(way: Way) -> str:
    if way.refused:
        return "refused by Ray"
    if way.leftover_bytes > 0:
        return "pins them"
    if way.came_back == 0:
        return "loses them"
    if way.came_back < way.objects:
        return "loses some"
    return "keeps until told"


_ROWS: tuple[tuple[str, Callable[[Way], str]], ...] = (
    ("before", lambda way: _size(way.before_bytes)),
    ("put, references pickled", lambda way: _size(way.pickled_bytes)),
    ("maker let go", lambda way: _size(way.maker_dropped_bytes)),
    ("came back elsewhere", _came_back),
    ("everybody let go", lambda way: _size(way.all_dropped_bytes)),
    ("lease released", _released),
    ("maker's process ended", lambda way: _size(way.maker_ended_bytes)),
)
