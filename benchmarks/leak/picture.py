"""A report as a picture: one panel a way, a bar a round, and two more for what is left at the end.

Panels, because two of the ways pin the same to the byte: lines would lie on each other. Memory and disk differ in lightness as well
as in hue (Okabe and Ito's palette), and each panel says in words what came of the objects. The SVG is the same for the same report.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

from .figures import Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MB = 1_000_000
_MEMORY, _DISK = "#0072B2", "#E69F00"
_GOOD, _BAD = "#007A5A", "#B5400A"
_TEXT, _FAINT = "#24292F", "#57606A"
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.edgecolor": "#8C959F",
    "axes.labelcolor": _TEXT,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "svg.hashsalt": "safe_refs",
    # Letters as outlines: the picture looks the same wherever it is shown.
    "svg.fonttype": "path",
}


def draw(report: Report, folder: Path) -> list[Path]:
    """Write `leak.svg` and `leak.png` into `folder`; the paths."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    files = [folder / "leak.svg", folder / "leak.png"]
    with mpl.rc_context(_STYLE):
        figure, panels = plt.subplots(
            1, len(report.ways), figsize=(11, 4.6), sharey=True, squeeze=False, facecolor="white"
        )
        told = report.parameters
        highest = max(each.pinned_bytes for way in report.ways for each in [*way.kept, *way.under_way]) / _MB
        top = 1.12 * max(highest, told.store_bytes / _MB)
        for number, (panel, way) in enumerate(zip(panels[0], report.ways, strict=True)):
            _panel(panel, way, told.store_bytes / _MB, top, first=number == 0)
        figure.suptitle(
            f"{told.rounds * told.handovers} objects of {told.size_bytes / _MB:g} MB handed over outside Ray by four ways",
            x=0.008, y=0.985, ha="left", va="top", fontsize=13, fontweight="bold",
        )  # fmt: skip
        _key(figure)
        figure.text(
            0.008, 0.012,
            f"{told.rounds} rounds of {told.handovers}. All let go: nobody has a reference, a value or a payload any more; the "
            f"workers still live. Workers died: both were killed. Ray {report.ray}, Python {report.python}.",
            fontsize=8, color=_FAINT,
        )  # fmt: skip
        figure.subplots_adjust(left=0.055, right=0.995, top=0.715, bottom=0.15, wspace=0.06)
        # A date would make each run's SVG another one.
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=160)
        plt.close(figure)
    return files


def _panel(panel: Axes, way: Result, store_mb: float, top: float, *, first: bool) -> None:
    """One way: bars for the rounds, a gap, and bars for the two readings at the end."""
    count = len(way.rounds)
    # The two readings at the end take as much room as half of the rounds, so that their names fit.
    step = max(0.28 * count, 1.0)
    at = [*range(1, count + 1), count + 0.6 + 0.75 * step, count + 0.6 + 1.75 * step]
    right = at[-1] + 0.5 * step
    width = [0.78] * count + [0.45 * step] * 2
    shown = way.kept
    memory = [each.memory_bytes / _MB for each in shown]
    disk = [each.disk_bytes / _MB for each in shown]
    panel.axvspan(at[count] - 0.55 * step, right, color="#F3F4F6", lw=0, zorder=0)
    panel.axhline(store_mb, color="#8C959F", lw=0.8, ls=(0, (4, 3)), zorder=1)
    for where, reading in zip(at, way.under_way, strict=False):
        if reading.pinned_bytes:
            panel.bar(where, reading.pinned_bytes / _MB, 0.78, fill=False, ec=_FAINT, lw=0.9, zorder=3)
    panel.bar(at, memory, width, color=_MEMORY, zorder=2)
    panel.bar(at, disk, width, bottom=memory, color=_DISK, zorder=2)
    for where, reading in list(zip(at, shown, strict=True))[count:]:
        pinned = reading.pinned_bytes / _MB
        panel.annotate(
            f"{pinned:.0f}", (where, pinned), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9
        )
    panel.set_xlim(0.2, right)
    panel.set_ylim(0, top)
    panel.set_xticks([1, count, *at[count:]], ["1", f"{count}", "all\nlet go", "workers\ndied"])
    panel.set_xlabel("round", x=(count / 2 + 0.3) / (right - 0.2), fontsize=9, color=_FAINT, labelpad=-20)
    panel.tick_params(length=0)
    panel.tick_params(axis="x", labelsize=8.5)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="y", color="#E5E7EB", lw=0.7, zorder=0)
    panel.set_axisbelow(True)
    if first:
        panel.set_ylabel("MB kept in Ray's store")
        panel.annotate(
            f"the store's memory: {store_mb:g} MB", (0.4, store_mb), (0, 3), textcoords="offset points",
            fontsize=8, color=_FAINT,
        )  # fmt: skip
    panel.text(0, 1.155, way.way, transform=panel.transAxes, fontsize=11.5, fontweight="bold")
    leaked = way.let_go.pinned_bytes / _MB
    for line, (text, bad) in enumerate(
        [
            (f"lost {way.lost} of {way.handed_over}" if way.lost else "lost none", bool(way.lost)),
            (f"leaked {leaked:.0f} MB" if way.let_go.pinned_bytes else "leaked nothing", bool(way.let_go.pinned_bytes)),
        ]
    ):
        mark, color = ("✗", _BAD) if bad else ("✓", _GOOD)
        panel.text(
            0, 1.085 - 0.07 * line, f"{mark} {text}", transform=panel.transAxes, color=color, fontsize=10, va="center"
        )


def _key(figure: Any) -> None:
    """What the bars mean, below the title."""
    import matplotlib.patches as shapes

    figure.legend(
        handles=[
            shapes.Patch(fill=False, ec=_FAINT, lw=0.9, label="held while payloads are under way"),
            shapes.Patch(color=_MEMORY, label="still kept afterwards, in memory"),
            shapes.Patch(color=_DISK, label="the same, spilled to disk"),
        ],
        loc="upper left", bbox_to_anchor=(0.008, 0.93), ncols=3, borderaxespad=0, borderpad=0, columnspacing=2.2,
        frameon=False, fontsize=9.5, handlelength=1, handleheight=1,
    )  # fmt: skip
