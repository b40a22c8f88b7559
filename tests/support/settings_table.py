"""The table of docs/settings.md, made from `config.SETTINGS`: `make settings` writes it, and a test compares it."""

from __future__ import annotations

import inspect
from typing import Any

import safe_refs
from safe_refs import config

from .environment import ROOT

PAGE = ROOT / "docs" / "settings.md"
BEGIN, END = "<!-- begin: made by `make settings` -->\n", "<!-- end -->\n"


def table() -> str:
    """The table, as Markdown."""
    of_init = inspect.signature(safe_refs.init).parameters
    rows = ["| `init(…)` | variable | values | default | what it is for |", "|---|---|---|---|---|"]
    for setting in config.SETTINGS:
        name = f"`{setting.name}`" if setting.name in of_init else "(none)"
        of = " (the registry's)" if setting.of_registry else ""
        rows.append(
            f"| {name} | `{setting.variable}` | {setting.values} | {_text(setting.default)} | {setting.about}{of} |"
        )
    return "\n".join(rows) + "\n"


def _text(default: Any) -> str:
    return "none" if default is None else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def page() -> str:
    """The page with the table as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(page())
