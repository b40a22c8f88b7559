"""What asks Ray's control service: one module, in which every question has its bound."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import safe_refs
from safe_refs import RegistryUnavailableError
from safe_refs._ray import native, requests
from tests.support.waiting import wait_until

PACKAGE = Path(safe_refs.__file__).parent
# What Ray has to ask its control service, by the last part of its name. `ray.nodes` and the like count only as a part of `ray`.
OF_RAY = {"nodes", "get_actor", "cluster_resources", "available_resources", "timeline", "state"}
ANYWHERE = {
    *("accessor", "_connect_and_get_accessor", "_really_init_global_state", "global_state_accessor", "gcs_client"),
    *("get_named_actor_handle", "list_named_actors", "get_all_node_info", "get_node_table", "get_job_table"),
    *("get_actor_info", "get_worker_info", "get_actor_table", "internal_kv_get_gcs_client", "_internal_kv_get"),
    *("_internal_kv_put", "_internal_kv_del", "_internal_kv_list", "_internal_kv_exists", "get_state_from_address"),
    *("internal_kv_get", "internal_kv_put", "internal_kv_del", "internal_kv_exists", "internal_kv_keys"),
}
# Who may, and why.
ALLOWED = {
    "_ray/control.py": ANYWHERE | OF_RAY,  # it is what bounds them
    "_ray/native.py": {
        "_connect_and_get_accessor",
        "_really_init_global_state",
        "global_state_accessor",
        "state",
    },  # for `control`
    "_ray/client.py": {
        "_internal_kv_get"
    },  # a Ray Client's first question, which has a bound of its own; the table has it
    "_ray/classes.py": {"internal_kv_get"},  # the name of what it answers to Ray
    "_ray/store.py": {"get_state_from_address"},  # for the demo, benchmarks and tests only
}


def asked_by(source: str) -> Iterator[str]:
    """The names in a module by which it would ask the control service."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            is_rays = isinstance(node.value, ast.Name) and node.value.id == "ray"
            is_rays = is_rays or (isinstance(node.value, ast.Attribute) and node.value.attr == "_private")
            if node.attr in ANYWHERE or (is_rays and node.attr in OF_RAY):
                yield node.attr
            if node.attr == "options" and isinstance(node.value, ast.Call) and _is_rays_remote(node.value):
                yield "options"  # an actor is created
        elif isinstance(node, ast.ImportFrom):
            from_ray = (node.module or "").partition(".")[0] == "ray" and not node.level
            yield from (each.name for each in node.names if each.name in ANYWHERE | (OF_RAY if from_ray else set()))
        elif isinstance(node, ast.Name) and node.id in ANYWHERE:
            yield node.id


def _is_rays_remote(call: ast.Call) -> bool:
    return ast.unparse(call.func) == "ray.remote"


def test_nothing_else_asks_the_control_service() -> None:
    """Every question to it has its bound in `_ray/control.py`. (The demo has a Ray of its own, and waits as Ray does)."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith("demo/"):
            names = (
                set(asked_by(path.read_text()))
                - ALLOWED.get(name, set())
                - ({"options"} if "control" in name else set())
            )
            if names:
                found[name] = names
    assert found == {}


def test_the_test_would_find_one() -> None:
    """The control of the test above."""
    source = (
        "import ray\nfrom ray.util import list_named_actors\nray.nodes()\nray.remote(A).options(name='a').remote()\n"
    )
    assert set(asked_by(source)) == {"list_named_actors", "nodes", "options"}
    assert set(asked_by("ray._private.state.actors()\ncluster.nodes()\nself._client.get_actor()")) == {"state"}


def test_every_question_stands_in_the_table() -> None:
    """With its bound: the module's docstring lists each function that asks."""
    tree = ast.parse((PACKAGE / "_ray" / "control.py").read_text())
    asks = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in ("asked", "_kv")
    }
    rows = [line for line in (ast.get_docstring(tree) or "").splitlines() if line.startswith("| `")]
    table = {part for row in rows for part in row.split("`")}
    assert asks - {"_kv"} <= table, asks - table


@pytest.fixture
def gate(ray_cluster: str) -> Iterator[threading.Event]:
    """What a question waits for that gets no answer; it gets one at the end."""
    opens = threading.Event()
    yield opens
    opens.set()


def test_a_question_that_gets_no_answer_ends_at_the_deadline(gate: threading.Event) -> None:
    """And the error names the control service."""
    begun = time.monotonic()
    with pytest.raises(RegistryUnavailableError, match="GCS"):
        requests.asked(lambda: gate.wait(20), requests.soon(0.2))
    assert 0.2 <= time.monotonic() - begun < 3


def test_all_who_ask_the_same_share_one_request(gate: threading.Event) -> None:
    """However often it is asked again while there is no answer; and the answer is everybody's."""
    made: list[int] = []

    def ask(deadline: Any) -> Any:
        def call() -> str:
            made.append(1)
            gate.wait(20)
            return "answer"

        return requests.asked(call, deadline, "the same")

    for _ in range(5):
        with pytest.raises(RegistryUnavailableError):
            ask(requests.soon(0.01))
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ask(requests.soon(20)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(20)
    assert found == ["answer"] * 3
    assert len(made) == 1
    wait_until(lambda: not requests._pending)


def test_threads_do_not_pile_up_while_it_is_silent(gate: threading.Event) -> None:
    """A hundred different questions leave a few threads, and those that nobody waits for any more are never asked."""
    made: list[int] = []

    def call(number: int) -> None:
        made.append(number)
        gate.wait(20)

    before = threading.active_count()
    for number in range(100):
        with pytest.raises(RegistryUnavailableError):
            requests.asked(lambda number=number: call(number), requests.soon(0.005), number)  # type: ignore[misc] # a lambda's default
    assert threading.active_count() - before <= 8
    gate.set()
    wait_until(lambda: not requests._pending)
    assert len(made) <= 8


def test_a_thread_that_answers_calls_waits_once(gate: threading.Event) -> None:
    """A shard's callers wait for a question that one of them asks for a moment only, and the next ones not at all."""
    took = []

    def serve() -> None:
        requests.answers_calls()
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(RegistryUnavailableError):
                requests.asked(lambda: gate.wait(20), requests.soon(20), "brief")
            took.append(time.monotonic() - begun)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(20)
    assert requests.BRIEF_S <= took[0] < 2
    assert max(took[1:]) < requests.BRIEF_S


def test_what_the_call_raises_is_raised_here(ray_cluster: str) -> None:
    """As if it had been called directly."""
    with pytest.raises(KeyError, match="mine"):
        requests.asked(lambda: dict[str, int]()["mine"], None)


class Interrupted(BaseException):
    """What a signal handler raises."""


def test_a_caller_that_is_interrupted_leaves_no_question_behind(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lines that note the question and that have a thread ask it, too: the next one who asks gets an answer."""

    def interrupted(_: Any) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(requests._background, "run", interrupted)
        with pytest.raises(Interrupted):
            requests.asked(lambda: "never", requests.soon(5), "interrupted")
    assert not requests._pending
    assert requests.asked(lambda: "answer", requests.soon(5), "interrupted") == "answer"


def test_a_handler_in_between_does_not_wait_for_its_own_thread(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks the same as the call that it has interrupted, which has not asked yet."""
    found: list[str] = []
    run = requests._background.run

    def between(job: Any) -> None:
        monkeypatch.undo()
        found.append(requests.asked(lambda: "inside", requests.soon(5), "between"))
        run(job)

    monkeypatch.setattr(requests._background, "run", between)
    found.append(requests.asked(lambda: "around", requests.soon(5), "between"))
    assert found == ["around", "around"]
    wait_until(lambda: not requests._pending)


def test_a_destructor_in_the_thread_that_asks_does_not_wait_for_it(ray_cluster: str) -> None:
    """It asks the same, and nobody else would answer."""

    def call() -> list[str]:
        return [requests.asked(lambda: "inside", requests.soon(5), "destructor"), "around"]

    begun = time.monotonic()
    assert requests.asked(call, requests.soon(5), "destructor") == ["inside", "around"]
    assert time.monotonic() - begun < 3


def test_who_comes_as_a_question_is_given_up_gets_an_answer(
    ray_cluster: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waited for it as its turn came, and somebody does now."""
    request = requests._Request(native.connected(), "given up", lambda: "answer")
    requests._pending[request.key] = request

    class Callers(list[object]):
        def append(self, caller: object) -> None:
            request.run()  # in a thread of the pool, just before
            super().append(caller)

    request.callers = Callers()
    assert requests.asked(lambda: "another", requests.soon(5), "given up") == "another"
    assert not requests._pending


def test_no_question_of_another_connection_is_shared(
    ray_cluster: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `ray.shutdown` and `ray.init` nobody waits for the cluster that was left, and perhaps has died."""
    with pytest.raises(RegistryUnavailableError):
        requests.asked(lambda: gate.wait(20), requests.soon(0.1), "which")
    another = object()
    monkeypatch.setattr(requests, "connected", lambda: another)
    assert requests.asked(lambda: "answer", requests.soon(5), "which") == "answer"
