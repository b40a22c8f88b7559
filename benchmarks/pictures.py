"""The report's pictures: hand-over times as bars, memory over time as curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

# Okabe and Ito's palette, which those who see colours otherwise can tell apart, too.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "safe_refs",
    "svg.fonttype": "path",  # the picture looks the same wherever it is shown
}


def draw(pictures: dict[str, Any], folder: Path) -> None:
    """Write each picture into `folder`.

    Args:
        pictures: by file name, what is in it: for `handover.svg` milliseconds by size and way, for `memory.svg` a curve by way.
        folder: which is there.
    """
    mpl.use("Agg")
    with mpl.rc_context(_STYLE):
        for name, what in pictures.items():
            figure = _bars(what) if name == "handover.svg" else _curves(what)
            figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")


def _bars(by_size: dict[str, dict[str, float]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4))
    for number, (size, by_way) in enumerate(by_size.items()):
        panel = figure.add_subplot(1, len(by_size), number + 1)
        panel.barh(list(by_way), list(by_way.values()), color=_COLOURS[: len(by_way)])
        panel.set_title(size)
        panel.set_xlabel("ms to the checksum")
        panel.invert_yaxis()
        if number:
            panel.set_yticklabels([])
    figure.tight_layout()
    return figure


def _curves(by_way: dict[str, list[tuple[float, float]]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    panel = figure.add_subplot()
    for (way, curve), colour in zip(by_way.items(), _COLOURS, strict=False):
        panel.plot([at for at, _ in curve], [value / 1e6 for _, value in curve], label=way, color=colour)
    panel.set_xlabel("seconds")
    panel.set_ylabel("MB pinned")
    panel.legend(frameon=False)
    return figure
