"""The house, as its own code shows it: modules, what each imports, the rooms that they stand in, and the way of a `dumps`.

`house_drawing` makes the picture of it, docs/house.svg; `make house` draws it anew.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT: Path = Path(__file__).resolve().parents[2]
PACKAGE: Path = ROOT / "safe_refs"


class Room(NamedTuple):
    """A room of the package.

    Attributes:
        name: of its folder, or a name for some files at the top of the package.
        title: what it is for, in a few words.
        files: those files; empty where the room is a folder.
    """

    name: str
    title: str
    files: tuple[str, ...] = ()


ROOMS = (
    Room("demo", "try it out", ("__main__", "cli")),
    Room(
        "face",
        "what users call",
        (
            "__init__",
            "pickling",
            "pickler",
            "unpickler",
            "handle",
            "pinning",
            "inspecting",
            "lifetimes",
            "scopes",
            "consuming",
            "loading",
            "pipelines",
            "putting",
            "admin",
            "aio",
            "awaiting",
        ),
    ),
    Room("leases", "how leases begin, are asked about, end", ("payloads", "asks", "pacing", "spending", "terms")),
    Room("slots", "pickles, numbered slots", ("engine", "by_value", "identity", "slots", "kinds", "others", "places")),
    Room("assembly", "plugs in the wings", ("assembly",)),
    Room("batching", "wing: many at once"),
    Room("replication", "wing: several shards"),
    Room("durability", "wing: copies"),
    Room("anchoring", "wing: owners know"),
    Room("registry", "one shard, and how to ask it"),
    Room("settings", "which settings hold", ("_settings",)),
    Room("_ray", "Ray's private API"),
    Room(
        "ground",
        "what everybody uses",
        ("bounds", "callers", "checks", "config", "envelope", "errors", "logs", "threads", "_version"),
    ),
)

_AT_THE_TOP = frozenset(name for room in ROOMS for name in room.files)

# The way of one reference to the registry's table, and back: (module, function) in the order of the calls. Only the steps that lead
# on; docs/architecture.md has the others. From `registry.shard` on they run in the registry's actor, but for the last of `LOADS`.
DUMPS = (
    ("pickling", "dumps"),
    ("engine", "pickle_object"),
    ("slots", "reduce_object_ref"),
    ("payloads", "hold"),
    ("batching.groups", "Batched.pin"),
    ("registry.asking", "Verbs.pin_once"),
    ("registry.calls", "Registry.ask"),
    ("registry.shard", "Shard.pin"),
    ("registry.steps", "pin"),
    ("registry.leases", "LeaseTable.pin"),
)
LOADS = (
    ("pickling", "loads"),
    ("envelope", "find"),
    ("handle", "slot_values"),
    ("asks", "resolve"),
    ("batching.groups", "Batched.resolve"),
    ("registry.verbs", "resolve"),
    ("registry.asking", "Verbs.ask_once"),
    ("registry.calls", "Registry.ask"),
    ("registry.shard", "Shard.resolve"),
    ("registry.steps", "resolve"),
    ("registry.leases", "LeaseTable.resolve"),
    ("slots", "slot"),
)


@functools.cache
def modules() -> dict[str, Path]:
    """All modules of the package, by their names within it, such as `registry.calls`; the package itself is `__init__`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(module: str, path: Path) -> set[str]:
    """Modules of the package that a file imports, by their names within it; also in functions, and for types only."""
    package = module.split(".") if path.name == "__init__.py" and module != "__init__" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            found |= {_known(".".join([*base, alias.name])) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {_known(f"{node.module}.{alias.name}"[10:]) for alias in node.names if _is_ours(node.module or "")}
        elif isinstance(node, ast.Import):
            found |= {_known(alias.name[10:]) for alias in node.names if _is_ours(alias.name)}
    return found - {module}


def _is_ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


def _known(name: str) -> str:
    """The module that a name leads to: itself, or the module that it is a name in."""
    return name if name in modules() else name.rpartition(".")[0] or "__init__"


def room(module: str) -> str:
    """The room that a module stands in.

    Raises:
        LookupError: it stands in none: say in `ROOMS` which.
    """
    top = module.split(".")[0]
    for each in ROOMS:
        if top in each.files or (top == each.name and module not in _AT_THE_TOP):
            return each.name
    raise LookupError(f"ROOMS doesn't say in which room {module} stands")


def lines(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text().splitlines())


@functools.cache
def arrows() -> Counter[tuple[str, str]]:
    """From which room to which imports go, and how many: of one module by another."""
    found: Counter[tuple[str, str]] = Counter()
    for module, path in modules().items():
        found.update((room(module), room(other)) for other in imported(module, path) if room(other) != room(module))
    return found


def levels() -> list[list[str]]:
    """The rooms from top to bottom: each stands just below the last of those that import it.

    Raises:
        ValueError: imports go round in a circle.
    """
    importers: dict[str, set[str]] = {each.name: set() for each in ROOMS}
    for above, below in arrows():
        importers[below].add(above)
    rows: list[list[str]] = []
    left = [each.name for each in ROOMS]
    while left:
        row = [name for name in left if importers[name].isdisjoint(left)]
        if not row:
            raise ValueError(f"imports between these rooms, or above them, go round in a circle: {', '.join(left)}")
        rows.append(row)
        left = [name for name in left if name not in row]
    return rows


def defines(path: Path, name: str) -> bool:
    """Whether a file defines a function, class, method or value of that name, such as `LeaseTable.pin`."""
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


if __name__ == "__main__":
    from . import house_drawing

    house_drawing.write()
