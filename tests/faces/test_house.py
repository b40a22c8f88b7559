"""The house: its public face, its one direction of imports, that Ray's private API is touched in one file, and the tests' rooms."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import safe_refs

PACKAGE = Path(safe_refs.__file__).parent
ROOT = PACKAGE.parent
TESTS = ROOT / "tests"

# Top to bottom: a file imports only what stands below it. Files of one row don't import one another.
FLOORS = [
    {"cli"},
    {"aio", "demo"},
    {"__init__"},
    {"admin", "leasing", "pickler"},
    {"pickling", "pipelining"},
    {"holding"},
    {"handle"},
    {"scopes"},
    {"registry.late"},
    {"registry.awaiting", "registry.posting"},
    {"registry.outbox"},
    {"registry.adopting"},
    {"registry.client", "registry.pinning", "registry.resolving"},
    {"registry.anchoring", "registry.releasing"},
    {"registry.site"},
    {"registry.exits"},
    {"registry.contact"},
    {"registry.shard"},
    {"registry.adoption", "registry.peers", "registry.settling"},
    {"registry.replication", "registry.returning"},
    {"registry.leases", "registry.wards"},
    {"registry.book", "registry.boxes", "registry.couriers", "registry.grouping"},
    {"registry.copying", "registry.usage", "registry.records", "registry.topology", "registry.wire"},
    {"slots"},
    {"others"},
    {"envelope", "_ray", "config", "places"},
    {"_ray_client"},
    {"errors", "_version", "randomness", "registry", "registry.aside"},
]


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def floor(module: str) -> int:
    name = "demo" if module.split(".")[0] == "demo" else module
    return next(number for number, names in enumerate(FLOORS) if name in names)


def imported(module: str, path: Path) -> set[str]:
    """Modules of the package that a file imports, by their names within it."""
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


def test_imports_run_one_way() -> None:
    """No file imports one above it; the faces may use the package as users do."""
    for module, path in modules().items():
        for other in imported(module, path):
            if floor(module) == floor("demo") == floor(other):
                continue
            assert floor(module) < floor(other), f"{module} imports {other}"


def test_the_public_face_is_pinned() -> None:
    """`__all__` is sorted and complete; a change of it is a change of the contract."""
    assert safe_refs.__all__ == sorted(safe_refs.__all__)
    assert [name for name in safe_refs.__all__ if not hasattr(safe_refs, name)] == []
    assert [name for name in safe_refs.__all__ if not name.startswith("_")] == [
        *("DEFAULT_PROTOCOL", "EnvelopeError", "HIGHEST_PROTOCOL", "LeaseError", "LeaseExpiredError", "LeaseInfo"),
        *("LeaseLostError", "LeaseNotFoundError", "LeaseReleasedError", "LeaseUsedUpError", "OwnerGoneError"),
        *(
            "PayloadInfo",
            "PickleBuffer",
            "PickleError",
            "Pickler",
            "PicklingError",
            "RegistryFullError",
            "RegistryStats",
        ),
        *(
            "RegistryUnavailableError",
            "SafeRef",
            "SafeRefsError",
            "Unpickler",
            "UnpicklingError",
            "UnsupportedReferenceError",
        ),
        *("WrongClusterError", "dump", "dumps", "dumps_many", "expires_in_s", "flush", "init", "inspect", "keepalive"),
        *("leases", "load", "loads", "loads_many", "open_payload", "pin", "pipeline", "release", "renew", "scope"),
        *("shutdown", "stats"),
    ]


def test_rays_private_api_is_touched_in_one_file() -> None:
    """Whoever reviews a new Ray looks at `_ray.py` only, and at `_ray_client.py` beside it."""
    private = re.compile(
        r"ray\._private|_raylet|internal_kv|core_worker|global_worker|ray\.core\.generated|(from|import) ray\.util\.client"
    )
    for module, path in modules().items():
        if module not in ("_ray", "_ray_client"):
            assert not private.search(path.read_text()), module


def test_the_rules_know_neither_ray_nor_threads_nor_clocks() -> None:
    """What decides about leases, in a shard and in a process that asks several, can be driven without Ray, with any clock."""
    for module in (
        *("registry.leases", "registry.lease", "registry.indexes", "registry.tombstones", "registry.listing"),
        *("registry.usage", "registry.records", "registry.wire", "registry.steps"),
        *("replication.records", "replication.topology", "replication.rules", "replication.merging"),
    ):
        check_pure(modules()[module].read_text())


def check_pure(source: str) -> None:
    assert not re.search(r"^\s*(import|from) (ray|threading|time|datetime|random|secrets|uuid)\b", source, re.MULTILINE)
    assert "_ray" not in source


def test_every_public_name_is_documented() -> None:
    """Every public function and class says what it does; functions that can fail say on what condition."""
    for name in safe_refs.__all__:
        thing = getattr(safe_refs, name)
        if callable(thing) and getattr(thing, "__module__", "").startswith("safe_refs"):
            assert thing.__doc__, name
    for name in (
        "dumps",
        "dumps_many",
        "loads",
        "loads_many",
        "dump",
        "load",
        "flush",
        "pipeline",
        "pin",
        "release",
        "renew",
        "inspect",
        "leases",
        "stats",
        "init",
        "shutdown",
    ):
        doc = getattr(safe_refs, name).__doc__
        assert "Raises:" in doc or "errors are those of" in doc, name


def test_version_and_changelog_agree() -> None:
    """The changelog's newest entry is of this version."""
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == safe_refs.__version__


def test_what_make_installs_is_pinned() -> None:
    """Each dependency in pyproject.toml has its version in constraints.txt or the file beside it; neither names a registry."""
    text = "".join((ROOT / name).read_text() for name in ("constraints.txt", "constraints-integrations.txt"))
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in text.splitlines() if "==" in line}
    wanted = importlib.metadata.requires("safe-refs") or []
    names = {re.split(r"[<>=\[ ;]", each)[0].lower() for each in wanted} - {"safe-refs"}
    assert {"ray", "cloudpickle", "msgpack", "rich", "redis", "pytest"} <= names
    assert names - pinned == set()
    assert "://" not in text


def test_no_test_imports_another_test_or_a_conftest() -> None:
    """What tests share stands in `tests/support`, or beside them in a module without tests; programs in texts keep to that, too."""
    named = re.compile(r"\b(?:from|import)\s+(tests[\w.]*|\.[\w.]*)(?:\s+import\s+(\([^)]*\)|.*))?")
    for path in TESTS.rglob("*.py"):
        for module, names in named.findall(path.read_text()):
            parts = [*module.split("."), *re.findall(r"\w+", names)]
            wrong = [part for part in parts if part.startswith("test_") or part == "conftest"]
            assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_what_tests_share_has_no_tests_in_it() -> None:
    """Fixtures stand in a conftest.py, tests in a `test_*.py`, and neither in other files."""
    for path in TESTS.rglob("*.py"):
        source = path.read_text()
        if not path.name.startswith("test_"):
            assert not re.search(r"^\s*(?:async )?def test_|^class Test", source, re.MULTILINE), path.relative_to(ROOT)
            assert path.name == "conftest.py" or "pytest.fixture" not in source, path.relative_to(ROOT)


def test_each_room_of_the_tests_says_what_it_is() -> None:
    """Each folder is a package with a docstring, and no file in it is too long to be read at once."""
    for path in TESTS.rglob("*.py"):
        assert ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text())), path.parent.relative_to(ROOT)
        assert len(path.read_text().splitlines()) <= 350, path.relative_to(ROOT)
