"""Processes of a Ray, as Linux shows them: which there are, the part that each plays, and what it has. Asks nobody but /proc."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_PARTS = {
    "SafeRefsRegistry": "registry",
    "SafeRefsRelay": "relays",
    "SafeRefsCopyOwner": "copy owner",
    "SafeRefsExitDelay": "exit delay",
    "Keeper": "registry",  # the control's
    "Borrower": "borrower",
    "PlainBorrower": "borrower",
    "Counter": "counter",
    "Passing": "passing",  # lives for a moment
}
FIGURES = ("memory", "threads", "files")


def family(root: int) -> list[int]:
    """A process and all that come from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
            children.setdefault(parent, []).append(int(path.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def part(command: str) -> str:
    """The part that a process plays, from its command line; nothing for Ray's other helpers."""
    if command.startswith("ray::"):
        class_ = re.split(r"\W", command[5:])[0]
        return _PARTS.get(class_, "workers")
    for name in ("raylet", "gcs_server"):
        if command.split(" ")[0].endswith(f"/{name}"):
            return name
    return ""


def has(pid: int) -> dict[str, float]:
    """Memory of its own in MB (10^6 bytes; pages of files and of the object store don't count), threads, and open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    rows = dict(row.split(":", 1) for row in status.splitlines())
    return {
        "memory": int(rows["RssAnon"].split()[0]) * 1024 / 1e6,
        "threads": int(rows["Threads"]),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


class Watch:
    """Looks at one side again and again.

    Args:
        driver: the pid of the side's driver, which is the parent of all others.
    """

    def __init__(self, driver: int) -> None:
        self._driver = driver
        self._parts: dict[int, str] = {driver: "driver"}  # bounded by how many processes the side has now

    def look(self) -> dict[str, float]:
        """What each part has: the most of any process that plays it; and what all have together."""
        found: dict[str, float] = {}
        total: Counter[str] = Counter()
        family_now = family(self._driver)
        self._parts = {pid: part for pid, part in self._parts.items() if pid in family_now}
        for pid in family_now:
            try:
                what, played = has(pid), self._part(pid)
            except (OSError, KeyError):  # it has just ended, or is a zombie
                continue
            total["processes, all"] += 1
            if played == "passing":
                continue
            for name, value in what.items():
                if played:
                    key = f"{name}, {played}"
                    found[key] = max(found.get(key, 0.0), value)
        return {**found, **total}

    def _part(self, pid: int) -> str:
        """A worker gets its part when an actor is born in it, and keeps it."""
        if self._parts.get(pid, "workers") in ("workers", ""):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            self._parts[pid] = part(command)
        return self._parts[pid]
