"""The bookkeeping of one copy job, without Ray: in which order what a lease holds is copied, whatever the objects hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_refs.durability import runner
from safe_refs.durability.copying import ErrorInside, Inside
from safe_refs.durability.jobs import CopyJob, Step
from safe_refs.durability.nodes import Nodes
from safe_refs.durability.runner import _failed
from safe_refs.durability.wire import NotCopyable, Why


class Ref(str):
    """A reference of a test's object, which is called by its id."""

    __slots__ = ()

    def binary(self) -> bytes:
        return self.encode()


def job_of(*names: str, ready: bool = True) -> CopyJob:
    return CopyJob([(name.encode(), Ref(name)) for name in names], ready=ready)


def copy_of(name: str) -> str:
    return f"copy of {name}"


def run(job: CopyJob, inside: dict[str, list[str]], order: Any = None) -> list[tuple[Step, str]]:
    """Carry out a job whose objects hold what `inside` says; the tasks that were run. `order` picks the next event of so many."""
    pick = order or (lambda many: 0)
    events: list[tuple[Step, str]] = []
    ran: list[tuple[Step, str]] = []
    while job.result is None:
        while job.awaited:
            events.append((Step.AWAIT, job.awaited.popleft().decode()))
        while job.tasks:
            step, id_ = job.tasks.popleft()
            name = id_.decode()
            ran.append((step, name))
            if step is Step.REBUILD:
                expected = {each.encode(): copy_of(each) for each in inside[name]}
                assert job.copies_inside(id_) == expected, "all that is inside has a copy"
            events.append((step, name))
            job.begun(step, id_, copy_of(name))
        step, name = events.pop(pick(len(events)))
        if step is Step.AWAIT:
            job.exists(name.encode())
        elif step is Step.DUPLICATE:
            refs: Any = [Ref(each) for each in inside.get(name, [])]
            job.duplicated(name.encode(), copy_of(name), Inside(refs))
        else:
            job.finished(name.encode())
    return ran


def test_objects_without_references_need_one_task_each() -> None:
    """The copies come in the order of the slots."""
    job = job_of("x", "y")
    assert run(job, {}) == [(Step.DUPLICATE, "x"), (Step.DUPLICATE, "y")]
    assert job.result == ["copy of x", "copy of y"]


def test_an_object_in_two_slots_is_copied_once_and_an_actor_stays() -> None:
    """An actor's handle has no id here."""
    job = CopyJob([(b"x", Ref("x")), (None, "an actor"), (b"x", Ref("x"))], ready=True)
    assert run(job, {}) == [(Step.DUPLICATE, "x")]
    assert job.result == ["copy of x", "an actor", "copy of x"]
    assert CopyJob([(None, "an actor")], ready=False).result == ["an actor"], "there is nothing to do"


def test_an_object_that_does_not_exist_yet_is_awaited_without_a_task() -> None:
    """A task would take a place, and Ray would run it on any node."""
    job = job_of("later", ready=False)
    assert list(job.awaited) == [b"later"]
    assert not job.tasks
    job.exists(b"later")
    assert list(job.tasks) == [(Step.DUPLICATE, b"later")]


def test_what_is_inside_is_copied_first_and_what_is_shared_once() -> None:
    """A rebuilding begins as soon as the last task for all that is inside has begun."""
    job = job_of("outer")
    ran = run(job, {"outer": ["left", "right"], "left": ["leaf"], "right": ["leaf"]})
    assert job.result == ["copy of outer"]
    steps = [step for step in ran if step[0] is Step.REBUILD]
    assert sorted(steps[:2], key=str) == [(Step.REBUILD, "left"), (Step.REBUILD, "right")]
    assert steps[2] == (Step.REBUILD, "outer")
    assert ran.count((Step.DUPLICATE, "leaf")) == 1
    assert len(ran) == 7
    assert set(job.copies()) == {copy_of(name) for name in ("outer", "left", "right", "leaf")}


def test_an_error_is_copied_as_it_is() -> None:
    """What a failed task gives is its error, which another task raises."""
    job = job_of("failed")
    step, id_ = job.tasks.popleft()
    job.begun(step, id_, "nothing")
    assert job.copies() == [], "the first task only finds out"
    job.duplicated(id_, "nothing", ErrorInside())
    assert list(job.tasks) == [(Step.FAIL_ALIKE, id_)]
    job.begun(Step.FAIL_ALIKE, id_, "the error")
    assert job.result is None
    job.finished(id_)
    assert job.result == ["the error"]


def test_objects_in_a_circle_are_refused() -> None:
    """However long it is; nothing is left to be waited for."""
    for inside in ({"x": ["x"]}, {"x": ["y"], "y": ["z"], "z": ["x"]}):
        job = job_of("x", "beside")
        run(job, inside)
        assert isinstance(job.result, NotCopyable)
        assert job.result.why is Why.UNSUPPORTED
        assert "circle" in job.result.reason


def test_a_worker_that_dies_is_replaced_a_few_times() -> None:
    """Then the job fails; and at once if a reference to the lost copy may be in others."""
    job = job_of("x")
    for _ in range(3):
        step, id_ = job.tasks.popleft()
        job.crashed(step, id_)
        assert job.result is None
    step, id_ = job.tasks.popleft()
    job.crashed(step, id_)
    assert isinstance(job.result, NotCopyable)
    assert job.result.why is Why.FAILED

    job = job_of("x")
    job.duplicated(*(job.tasks.popleft()[1], "nothing"), ErrorInside())
    step, id_ = job.tasks.popleft()
    job.begun(step, id_, "lost")
    job.crashed(step, id_)
    assert isinstance(job.result, NotCopyable)


@pytest.mark.parametrize("kind", ["WorkerCrashedError", "NodeDiedError", "OutOfMemoryError"])
def test_a_task_that_ray_has_killed_is_run_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was killed because memory was short on its node: the next may run on another."""
    error = getattr(ray.exceptions, kind)
    job = job_of("x")
    step, id_ = job.tasks.popleft()

    def dies(_: object) -> None:
        raise error(*([] if kind == "WorkerCrashedError" else ["killed"]))

    monkeypatch.setattr(runner, "fetch", dies)
    task = runner._Task(SimpleNamespace(job=job), step, id_, ray.ObjectRef.nil(), None)  # type: ignore[arg-type] # all that is needed
    runner.Runner(Nodes(), lambda *_: None)._task_over(task, ray.ObjectRef.nil())
    assert list(job.tasks) == [(step, id_)]
    assert job.result is None


def test_the_first_failure_ends_it() -> None:
    """What is said afterwards, as other tasks were under way, changes nothing; and then it holds nothing."""
    why = NotCopyable(Why.GONE, "the owner is dead")
    job = job_of("x", "y", "z", ready=False)
    job.exists(b"x")
    job.duplicated(b"x", None, why)
    assert job.result == why
    job.exists(b"y")
    job.duplicated(b"y", "copy of y", Inside([]))
    job.fail(NotCopyable(Why.FAILED, "later"))
    assert job.result == why
    assert [id_ for _, id_ in job.tasks if id_ != b"x"] == []
    job.clear()
    assert job.copies() == []
    assert not job.tasks
    assert not job.awaited
    assert not job.result


NAMES = "abcdefgh"
# Each holds some of those after it, so that there is no circle.
graphs = st.fixed_dictionaries(
    {
        name: st.lists(st.sampled_from(NAMES[number + 1 :]), unique=True) if name != NAMES[-1] else st.just([])
        for number, name in enumerate(NAMES)
    }
)


@settings(deadline=None)  # a busy machine is no fault
@given(graphs, st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), st.data())
def test_whatever_holds_whatever_each_is_copied_once_in_any_order(
    inside: dict[str, list[str]], slots: list[str], data: st.DataObject
) -> None:
    """In whichever order objects appear and tasks end: each object that can be reached is read once or twice, and none is missing."""
    job = job_of(*slots, ready=data.draw(st.booleans()))
    ran = run(job, inside, lambda many: data.draw(st.integers(0, many - 1)))
    assert job.result == [copy_of(name) for name in slots]
    reached: set[str] = set()
    todo = list(slots)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += inside[name]
    assert sorted(ran, key=str) == sorted(
        [(Step.DUPLICATE, name) for name in reached] + [(Step.REBUILD, name) for name in reached if inside[name]],
        key=str,
    )
    assert set(job.copies()) == {copy_of(name) for name in reached}


def test_why_there_is_no_copy_is_said_in_a_line() -> None:
    """Ray's error of a task begins with the lines of the task, and ends with what went wrong."""
    error = RuntimeError(
        "ray::duplicate() (pid=1)\n  File \"x.py\", line 5\nModuleNotFoundError: No module named 'things'\n"
    )
    assert _failed(error) == NotCopyable(Why.FAILED, "ModuleNotFoundError: No module named 'things'")
    assert _failed(ValueError("plain")).reason == "ValueError: plain"
