"""The package as its own code shows it: its files, their rooms and lines, and what they import."""

from __future__ import annotations

import ast
from pathlib import Path

import safe_refs

PACKAGE = Path(safe_refs.__file__).parent

# The rooms of the files that stand in no folder.
ROOMS = {
    "face": ("__init__", "cli", "aio", "admin", "lifetimes", "scopes", "pipelines"),
    "pickling": ("pickler", "pickling", "engine", "slots", "kinds", "others", "places"),
    "leases": ("handle", "asks", "payloads", "assembly", "terms"),
    "ground": ("errors", "config", "envelope", "threads", "_version"),
}


def modules() -> dict[str, Path]:
    """The files of the package, by their names within it; the package itself is `__init__`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def room(module: str) -> str:
    """The room of a file: its folder, or for one in none, what it belongs to."""
    first = module.split(".")[0]
    return next((name for name, files in ROOMS.items() if first in files), first)


def lines(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text().splitlines())


def imported(module: str, path: Path) -> set[str]:
    """Files of the package that a file imports, also within functions and for types only."""
    package = module.split(".") if path.name == "__init__.py" and module != "__init__" else module.split(".")[:-1]
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                name = ".".join([*base, alias.name])
                found.add(name if name in known else ".".join(base) or "__init__")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {
                name.removeprefix("safe_refs").lstrip(".") or "__init__"
                for name in names
                if name.split(".")[0] == "safe_refs"
            }
    return found
