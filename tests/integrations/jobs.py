"""A maker and a reader: the programs of the two jobs between which something is passed.

The first lives on, with nothing in its hands, while the second reads what it left in a file.
"""

from __future__ import annotations

from typing import Any, Protocol

from tests.support.processes import PRELUDE

JOB = PRELUDE + "from tests.integrations.store import pinned, pinned_from, pinned_once\n"

# It makes the thing twice: once without a payload, to show that it then goes, and once with. The first time it waits until all is
# computed: Ray now and then leaves behind what a task returns if nobody wants it any more by then.
MAKE = """
path, size, limit = args[0], int(args[1]), int(args[2])
thing = make()
finish(thing)
held = pinned_from(size)
del thing
gc.collect()
alone = pinned_once(limit)
with open(path, "wb") as file:
    safe_refs.dump(make(), file)
gc.collect()
print(json.dumps([held, alone, pinned_from(size)]), flush=True)
sys.stdin.readline()
"""
READ = """
with open(args[0], "rb") as file:
    payload = file.read()
value = use(safe_refs.loads(payload))
gc.collect()
print(json.dumps([value, pinned(), safe_refs.release(payload)]))
"""


class HandOver(Protocol):
    """Hand what `make()` returns from one job to another, by a file, and return what `use` there makes of it."""

    def __call__(self, make: str, use: str, *, size: int, left: int = 0) -> Any:
        """Run both jobs, with the maker alive all the time.

        What is checked: without a payload the thing goes as soon as its maker lets go of it; with one it stays, and is good in the
        other job; when that one has released the payload, no lease and no byte is left.

        Args:
            make: Python code that defines `make()`, and `finish(thing)`, which waits until all of the thing is computed.
            use: Python code that defines `use(thing)`, whose result is JSON; `payload` is there, too.
            size: how many bytes of the store the thing takes, at least.
            left: how many bytes the library may keep in the maker for itself.
        """
