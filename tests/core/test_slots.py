"""The ids that a payload draws with its first reference: nobody draws the same, whoever forked whom, and how."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Draws ids as a pickling does, without Ray, and prints them with the process that drew them.
DRAWS = """
import os, signal, sys
from safe_refs import slots

def draw(times):
    found = []
    for _ in range(times):
        writing = slots.Writing()
        writing.number(object(), slots.OBJECT_REF)
        found.append((writing.tag + writing.lease).hex())
    return found

def say(ids):
    if child:
        os.waitpid(child, 0)  # two that write at once mix their lines
    sys.stdout.write("".join(f"{os.getpid()} {each}\\n" for each in ids))
    sys.stdout.flush()
"""
FORKS = {
    # Python's hooks run in the child.
    "os.fork": "first = draw(3)\nchild = os.fork()\nsay(draw(400) + (first if child else []))",
    # They don't: so do servers that embed Python, unless they are told to.
    "fork": "import ctypes\nfirst = draw(3)\nchild = ctypes.CDLL(None).fork()\nsay(draw(400) + (first if child else []))",
    # In the middle of a draw of a page, whose rest the child is not to have, too.
    "a signal's handler": """
child = None
def fork(*_):
    global child
    child = 0  # already: what runs in a new child may draw, too
    child = os.fork()
urandom = os.urandom
def interrupted(size):
    found = urandom(size)
    if child is None:
        signal.raise_signal(signal.SIGUSR1)
    return found
signal.signal(signal.SIGUSR1, fork)
os.urandom = interrupted
draw(1)
say(draw(400))
""",
}


@pytest.mark.parametrize("way", FORKS)
def test_a_forked_process_draws_ids_of_its_own(way: str) -> None:
    """A lease of an id that is live already would not be held: the registry takes it for the same pin once more."""
    code = DRAWS + FORKS[way] + "\nos._exit(0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len({pid for pid, _ in rows}) == 2
    assert len(rows) >= 800
    assert len({ids for _, ids in rows}) == len(rows)
    assert {len(ids) for _, ids in rows} == {2 * 24}
