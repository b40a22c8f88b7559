"""Mistakes with the environment: each variable with texts that it can't have, and names that are mistyped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import safe_refs
from safe_refs import _settings, config
from safe_refs.config import SETTINGS, Setting

from .mistakes import Given, Mistake

SPAN = ("soon", "0", "-1", "nan", "10s", "1e300", "None")
WHOLE = ("0", "-1", "1.5", "1GB", "many", "nan")
FLAG = ("maybe", "-1", "2", "None", "y e s")
NAME = ("a:1", "x" * 65, "a b", "../orders")


def texts(setting: Setting) -> tuple[str, ...]:
    """Texts that a variable can't have, by what values it may have."""
    for start, found in (("seconds", SPAN), ("a whole number", WHOLE), ("0 or 1", FLAG), ("a name", NAME)):
        if setting.values.startswith(start):
            return found
    raise AssertionError(f"nobody says which texts {setting.variable} can't have")


def _with(variable: str, text: str) -> Callable[[Given], Any]:
    def do(_: Given) -> Any:
        was = os.environ.get(variable)
        os.environ[variable] = text
        _settings._known = None
        try:
            return safe_refs.settings()
        finally:
            if was is None:
                del os.environ[variable]
            else:
                os.environ[variable] = was

    return do


def mistakes() -> Iterator[Mistake]:
    """For each variable."""
    for setting in SETTINGS:
        name = setting.variable
        for text in texts(setting):
            says = f"^the environment variable {name} must be {setting.values.split(' ')[0]} .*, not "
            yield Mistake(f"{name}={text:.20}", _with(name, text), ValueError, says)
        mistyped = name[:-2] + name[-1]
        says = f"no setting for the environment variable {mistyped}: is {name} meant"
        yield Mistake(f"{mistyped} for {name}", _with(mistyped, "1"), UserWarning, says)
    says = r"no setting for the environment variable SAFE_REFS_QQQQQQ.*docs/settings.md"
    yield Mistake("a name like no other", _with("SAFE_REFS_QQQQQQ", "1"), UserWarning, says)
    assert config.unknown_variables() == []
