"""What a process keeps for a connection: one session, which goes with the connection and stays behind in a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import ray

import safe_refs
from safe_refs import assembly
from safe_refs.registry import known
from tests.support.processes import Driver, run_python


def test_there_is_one_session_whoever_asks_first(cluster: str) -> None:
    """Threads that come at once get the same one, with all its parts."""
    known.drop(next(iter(known.sessions), None) or assembly.client().connection)
    found: list[assembly.Client] = []
    begin = threading.Barrier(8)

    def ask() -> None:
        begin.wait()
        found.append(assembly.client())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {id(each) for each in found} == {id(assembly.client())}
    payload = safe_refs.dumps(ray.put("v"))
    assert ray.get(safe_refs.loads(payload, take=True), timeout=20) == "v"


@pytest.mark.long
def test_a_session_goes_with_its_connection() -> None:
    """Nothing that was kept for one cluster is there in the next: neither handles nor what was resolved a moment ago."""
    code = """
    import json, logging, ray, safe_refs
    from safe_refs.registry import known
    from tests.support.cluster import LOCAL_RAY

    seen = []
    for number in range(2):
        ray.init(**LOCAL_RAY)
        payload = safe_refs.dumps(ray.put(number))
        ref = safe_refs.loads(payload)
        seen.append([ray.get(ref), len(known.sessions), safe_refs.release(payload)])
        before = next(iter(known.sessions.values()))
        if number:
            seen.append(before is not first and not before.parts[0]._reports.lately() - {ref.binary()})
        first = before
        ray.shutdown()
    print(json.dumps(seen))
    """
    assert run_python(code, timeout=120) == [[0, 1, 1], [1, 1, 1], True]


def test_a_forked_child_knows_no_session(cluster: str) -> None:
    """It has none of the threads, nor the connection."""
    assembly.client()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not known.sessions else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert known.sessions


@pytest.mark.parametrize("name", ["default:1", "", "a/b", "x" * 65, "ü", "two words"])
def test_registries_have_names_that_are_theirs_alone(cluster: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`default:1` would be the actor of a shard of `default`. Nothing is changed by a name that is refused."""
    with pytest.raises(ValueError, match="a registry's name is"):
        safe_refs.init(name)
    assert safe_refs.settings().registry != name
    with pytest.raises(ValueError, match="a registry's name is"):
        safe_refs.stats(registry=name)
    if name:
        monkeypatch.setenv("SAFE_REFS_REGISTRY", name)
        with pytest.raises(ValueError, match="the environment variable SAFE_REFS_REGISTRY must be a name"):
            safe_refs.dumps(ray.put(1))


def test_old_names_work_for_one_more_release(cluster: str) -> None:
    """Each with a warning that says the new one."""
    payload = safe_refs.dumps(ray.put("v"))
    (info,) = safe_refs.leases()
    figures = safe_refs.stats()
    assert figures is not None
    with pytest.warns(DeprecationWarning, match="depends_on"):
        assert info.hangs_on is info.depends_on
    with pytest.warns(DeprecationWarning, match="unanchored"):
        assert figures.unsettled == figures.unanchored
    safe_refs.release(payload)


def test_actors_say_whose_they_are(cluster: str, driver: Driver) -> None:
    """In `ray list actors`, by their classes; a shard, and the relays that help it when somebody has loaded something."""
    found = driver(
        """
        from ray._private.state import actors
        payload = safe_refs.dumps(ray.put(1))
        ref = safe_refs.loads(payload)
        deadline = time.monotonic() + 30
        wanted = {"SafeRefsRegistry", "SafeRefsRelay"}
        while time.monotonic() < deadline:
            names = {row["ActorClassName"].rpartition(".")[2] for row in actors().values()}
            if wanted <= names:
                break
            time.sleep(0.1)
        safe_refs.release(payload)
        print(json.dumps(sorted(wanted & names)))
        """
    )
    assert found == ["SafeRefsRegistry", "SafeRefsRelay"]


def test_a_session_that_a_signal_handler_begins_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while its thread is about to keep another of the same connection. What it posts by its own must not be lost."""

    class Begun:
        def __init__(self, connection: Any) -> None:
            self.connection = connection
            self.is_closed = False

        def close(self) -> None:
            self.is_closed = True

    class Connection:
        """One at whose first look the handler comes."""

        handler: Callable[[], object] | None = None

        @property
        def client(self) -> bool:
            handler, self.handler = self.handler, None
            if handler is not None:
                handler()
            return False

    before, connection = Begun(Connection()), Connection()
    monkeypatch.setattr(known, "sessions", {before.connection: before})
    interrupted, handlers = Begun(connection), Begun(connection)
    got: list[Any] = []
    connection.handler = lambda: got.append(known.add(cast(Any, handlers)))
    kept = known.add(cast(Any, interrupted))
    assert list(known.sessions.values()) == [kept]
    other = handlers if kept is cast(Any, interrupted) else interrupted
    assert [each.is_closed for each in cast(Any, (before, other, kept))] == [True, True, False]
    assert got == [kept], "the handler got the one that is kept"
