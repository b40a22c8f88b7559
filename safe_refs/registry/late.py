"""The registry's room as the faces use it: what is needed only once there is a reference to hold, or one to find.

`late.client` and its neighbours are imported when they are first used. So who pickles plain data, or looks into payloads, neither
waits for them nor keeps them in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adopting as adopting
    from . import awaiting as awaiting
    from . import client as client
    from . import contact as contact
    from . import outbox as outbox
    from . import pinning as pinning
    from . import posting as posting
    from . import releasing as releasing
    from . import resolving as resolving
    from . import site as site
else:
    _ROOM = (
        "adopting",
        "awaiting",
        "client",
        "contact",
        "outbox",
        "pinning",
        "posting",
        "releasing",
        "resolving",
        "site",
    )

    def __getattr__(name: str) -> Any:
        """Import a module of the room, which from then on is an attribute here, like any other."""
        if name not in _ROOM:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        found = globals()[name] = importlib.import_module(f".{name}", __package__)
        return found
