"""The house: its face, its one direction of imports, its sizes, what threads share, Ray's private API, and the tests' rooms."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections import Counter

import safe_refs
from tests.support.environment import ROOT
from tests.support.house import imported, lines, modules, room

TESTS = ROOT / "tests"

# Rooms from top to bottom: a file imports what stands in its own room or below, never above. Wings stand side by side.
WINGS = {"batching", "replication", "durability", "anchoring"}
ABOVE = ["__main__", "cli", "demo", "__init__", "aio", "faces"]
ABOVE += ["pickling", "loading", "handle", "pacing", "asks", "spending", "payloads", "assembly"]
# The chain that a reference goes through, and what stands beside it.
CHAIN = ("pickling", "slots", "payloads", "registry.calls", "registry.asking", "registry.shard", "registry.leases")
MOST_LINES = 350


def level(module: str) -> int:
    """How far down a file stands."""
    room = module.split(".")[0]
    faces = {
        "admin",
        "awaiting",
        "consuming",
        "inspecting",
        "lifetimes",
        "scopes",
        "pinning",
        "pipelines",
        "pickler",
        "unpickler",
        "putting",
    }
    if room in ABOVE or room in faces:
        return ABOVE.index("faces" if room in faces else room)
    order = (
        WINGS,
        {"registry", "terms"},
        {"engine"},
        {"by_value"},
        {"identity"},
        {"kinds"},
        {"slots"},
        {"others", "places"},
        {"_settings"},
        {"_ray"},
        {"envelope"},
    )
    below = next((number for number, rooms in enumerate(order) if room in rooms), len(order))
    return len(ABOVE) + below


def test_imports_run_one_way() -> None:
    """No file imports one above it, a wing imports no other wing, and only `assembly` knows the wings."""
    for module, path in modules().items():
        for other in imported(module, path):
            room, others = module.split(".")[0], other.split(".")[0]
            assert level(module) <= level(other), f"{module} imports {other}"
            if others in WINGS and room != others:
                assert module == "assembly", f"{module} imports {other}"


def test_no_file_imports_itself_by_another() -> None:
    """There is no circle of imports, not even one for types only."""
    imports = {module: imported(module, path) for module, path in modules().items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in imports.get(module, set()) - {module}:
                visit(other, (*way, module))
            done.add(module)

    for module in imports:
        visit(module, ())


def test_the_core_is_read_in_one_sitting() -> None:
    """The chain from `dumps` to the rules has under 2,000 lines, the shard at most 260."""
    assert sum(lines(modules()[module]) for module in CHAIN) < 2000
    assert lines(modules()["registry.shard"]) <= 260


def test_files_and_rooms_stay_small() -> None:
    """A file past 350 lines says in its docstring why; no room has more than a fifth of the package."""
    sizes = {module: lines(path) for module, path in modules().items()}
    for module, size in sizes.items():
        doc = ast.get_docstring(ast.parse(modules()[module].read_text())) or ""
        assert size <= MOST_LINES or "More than 350 lines" in doc, f"{module}: {size} lines"
    rooms: Counter[str] = Counter()
    for module, size in sizes.items():
        rooms[room(module)] += size
    assert max(rooms.values()) <= rooms.total() / 5, rooms


# Containers at module level that threads share. Each line says what bounds it, and what guards it or why nothing must.
CONTAINERS = {
    "_settings._layers": "eight connections; each step is atomic",
    "_ray.actors._interned": "weak: as many actors as this process has handles of; a lock",
    "_ray.classes._fetched": "one for each thread that opens an answer; each step is atomic",
    "_ray.packages._lacking": "a thousand nodes; each step is atomic",
    "_ray.requests._pending": "the requests of the pool's threads, and those that callers wait for; each step is atomic",
    "_ray.counts._held": "what one touch took that failed, after which there is none; each step is atomic",
    "_ray.exits._hooks": "one for each wing that has a hook; each step is atomic",
    "anchoring.exits._all": "weak: the borrowers of live sessions; each step is atomic",
    "batching.unacknowledged._live": "weak: live sessions; each step is atomic",
    "by_value.rays_table": "Ray's own table; only looked at",
    "identity._making": "one for each thread that opens a new class; each step is atomic",
    "identity._unfilled": "weak: what is being opened just now; each step is atomic",
    "registry.known.sessions": "eight connections; each step is atomic",
    "slots.reducers": "a fixed number of types; only added to",
    "slots._drawn": "what one draw of each thread gives, of this process; each step is atomic",
    "terms._open": "weak: open scopes; each step is atomic",
}


def test_threads_share_no_container_at_module_level() -> None:
    """What is kept per cluster is in a session's objects. The few exceptions are listed, with their bound and their lock."""
    makers = {"dict", "list", "set", "deque", "OrderedDict", "Counter", "defaultdict", "WeakSet", "WeakValueDictionary"}
    found = set()
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
            call = value.func if isinstance(value, ast.Call) else None
            made = getattr(call, "id", getattr(call, "attr", "")) in makers
            # A constant has a name in capitals, and is never changed.
            if made or isinstance(value, (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)):
                names = [each.id for each in targets if isinstance(each, ast.Name)]
                found |= {f"{module}.{name}" for name in names if name != "__all__" and not name.lstrip("_").isupper()}
    assert found == set(CONTAINERS)


def test_the_public_face_is_pinned() -> None:
    """`__all__` is sorted and complete; a change of it is a change of the contract."""
    assert safe_refs.__all__ == sorted(safe_refs.__all__)
    assert [name for name in safe_refs.__all__ if not hasattr(safe_refs, name)] == []
    assert [name for name in safe_refs.__all__ if not name.startswith("_")] == [
        *("DEFAULT_PROTOCOL", "EnvelopeError", "HIGHEST_PROTOCOL", "LeaseError", "LeaseExpiredError", "LeaseInfo"),
        *("LeaseLostError", "LeaseNotFoundError", "LeaseRejectedError", "LeaseReleasedError", "LeaseUsedUpError"),
        "OwnerGoneError",
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
            "Settings",
            "Unpickler",
            "UnpicklingError",
            "UnsupportedReferenceError",
        ),
        *(
            "WrongClusterError",
            "consume",
            "dump",
            "dumps",
            "dumps_many",
            "expires_in_s",
            "flush",
            "init",
            "inspect",
            "keepalive",
        ),
        *(
            "leases",
            "load",
            "loads",
            "loads_many",
            "open_payload",
            "pin",
            "pipeline",
            "put",
            "release",
            "renew",
            "scope",
        ),
        *("settings", "shutdown", "stats"),
    ]


def test_rays_private_api_is_touched_in_one_room() -> None:
    """Whoever reviews a new Ray looks at `_ray/` only."""
    private = re.compile(
        r"ray\._private|_raylet|internal_kv|core_worker|global_worker|ray\.core\.generated|(from|import) ray\.util\.client"
    )
    for module, path in modules().items():
        if module.split(".")[0] != "_ray":
            assert not private.search(path.read_text()), module


def test_the_rules_know_neither_ray_nor_threads_nor_clocks() -> None:
    """`LeaseTable` can be driven without Ray, with any clock."""
    for module in (
        *("registry.indexes", "registry.lease", "registry.leases", "registry.listing", "registry.records"),
        *("registry.steps", "registry.tombstones", "registry.usage", "durability.requests", "anchoring.unanchored"),
        *("replication.merging", "replication.records", "replication.rules", "replication.topology"),
    ):
        # `Touch` is an enum, which has nothing of Ray in it.
        check_pure(modules()[module].read_text().replace("from .._ray.counts import Touch\n", ""))


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
