"""Which files the demo works on: those it is given, or real files of the running Python.

What always holds: every file is a regular one that can be read; what can't be is refused before anything is started.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .failure import UsageError

DEFAULT_FILES = 60


class File(NamedTuple):
    """One file to hand over.

    Attributes:
        name: what people call it.
        path: where it is, absolute.
        size_bytes: its size when the demo started.
    """

    name: str
    path: str
    size_bytes: int


def given(names: Sequence[str]) -> list[File]:
    """The files that the user named, in that order.

    Raises:
        UsageError: one doesn't exist, is no regular file, or can't be read.
    """
    return [_given(name) for name in names]


def of_this_python() -> list[File]:
    """The 60 largest modules (`.py` and `.so`) of the running Python's own library, largest first; always in the same order."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(root):
        # What was installed beside the library isn't Python's own, and varies most.
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        for name in names:
            path = Path(folder, name)
            if path.suffix in (".py", ".so") and path.is_file() and os.access(path, os.R_OK):
                found.append(File(str(path.relative_to(root)), str(path), path.stat().st_size))
    if not found:
        raise UsageError("this Python's library isn't made of files: name some with `safe-refs demo FILE...`")
    return sorted(found, key=lambda file: (-file.size_bytes, file.name))[:DEFAULT_FILES]


def some(files: Sequence[File], most: int, most_bytes: int) -> list[File]:
    """The first few of `files`, at most `most_bytes` together; the smallest one if none is as small as that."""
    chosen: list[File] = []
    total = 0
    for file in files:
        if len(chosen) < most and total + file.size_bytes <= most_bytes:
            chosen.append(file)
            total += file.size_bytes
    return chosen or [min(files, key=lambda file: file.size_bytes)]


def _given(name: str) -> File:
    path = Path(name)
    try:
        # Ray writes down the command line of each driver, and can't if it isn't UTF-8.
        name.encode()
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise UsageError(f"{name} is a directory: name the files in it, for example {path / '*'}")
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"{name} is not a regular file")
        with path.open("rb"):
            pass
    except UnicodeEncodeError:
        raise UsageError(f"{name} has a name that is not UTF-8: give it another, or name a link to it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{name} can't be read: {reason}") from None
    return File(name, str(path.absolute()), found.st_size)
