"""A report as a table: for the terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .figures import Report

_ROUNDS_SHOWN = 3
_MB = 1_000_000


def rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and rows, as text. Of many rounds a few are shown, the last among them; the JSON has all."""
    shown = _some_rounds(report.parameters.rounds)
    head = [
        "way",
        "lost",
        "under way",
        *(f"round {number + 1}" for number in shown),
        "all let go",
        "on disk",
        "workers died",
        "spilled",
    ]
    body = [
        [
            each.way,
            f"{each.lost} of {each.handed_over}",
            _mb(each.under_way[-1].pinned_bytes),
            *(_mb(each.rounds[number].pinned_bytes) for number in shown),
            _mb(each.let_go.pinned_bytes),
            _mb(each.let_go.disk_bytes),
            _mb(each.workers_died.pinned_bytes),
            _mb(each.workers_died.spilled_bytes),
        ]
        for each in report.ways
    ]
    return head, body


def for_terminal(report: Report) -> Table:
    """The table as rich prints it."""
    head, body = rows(report)
    table = Table(title=f"{caption(report)}; pinned and spilled in MB", title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number < 2)
    for row in body:
        table.add_row(*row)
    return table


def for_markdown(report: Report) -> str:
    """The table in Markdown, with a line that says what it was measured on."""
    head, body = rows(report)
    rule = [":--"] + ["--:"] * (len(head) - 1)
    lines = [_line(head), _line(rule), *(_line(row) for row in body)]
    return f"{caption(report)}. Pinned and spilled in MB.\n\n" + "\n".join(lines) + "\n"


def caption(report: Report) -> str:
    """What was handed over, and on what."""
    told = report.parameters
    return (
        f"{told.rounds} rounds of {told.handovers} objects of {_mb(told.size_bytes)} MB, a store of {_mb(told.store_bytes)} MB; "
        f"Ray {report.ray}, Python {report.python}, safe_refs {report.safe_refs}, {report.cores} cores, {report.made_on}"
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mb(count: int) -> str:
    """Bytes in MB, with one decimal only where it says something. Anything but zero shows as more than zero."""
    value = count / _MB
    if count and value < 0.05:
        return "< 0.1"
    return f"{value:.1f}".removesuffix(".0")


def _some_rounds(rounds: int) -> list[int]:
    """Numbers, from 0, of a few rounds: the first, the last, and some between."""
    if rounds <= _ROUNDS_SHOWN:
        return list(range(rounds))
    step = (rounds - 1) / (_ROUNDS_SHOWN - 1)
    return [round(step * each) for each in range(_ROUNDS_SHOWN)]
