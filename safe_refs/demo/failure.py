"""How the demo says that it could not be run (`UsageError`, exit status 2) or broke down on the way (`DemoError`, 1)."""

from __future__ import annotations


class UsageError(Exception):
    """The demo can't start with what it was given; the message is one line that says what to change. Nothing was started."""


class DemoError(Exception):
    """Something that the demo runs on (Ray, one of its processes, the channel) failed; the message is for people."""
