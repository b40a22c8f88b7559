"""Carries out copy jobs: waits for objects that don't exist yet, and runs the tasks, a few at a time.

    begin(job) ──> wait for its objects ──┐
                       ^                  v
                       └─ what is next ── run its tasks, in its turn ──> over(job)

What always holds: used by one thread; each job gets its turn, however many tasks others have; a job that fails ends by itself, and no
other does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .._ray import actors, packages, workers
from .copying import duplicate, fail_alike, rebuild, submit
from .jobs import CopyJob, Step
from .nodes import Nodes
from .wire import CopyCall, NotCopyable, Why

if TYPE_CHECKING:
    import ray

    Ref = ray.ObjectRef[Any]

logger = logging.getLogger("safe_refs.registry")

_AT_ONCE = 6  # tasks; each has a process of its own
_AT_ONCE_EACH = 3  # of one lease, as they may never end
_LOOKS_S = 0.05  # how long new work waits while objects are waited for
_ANSWER_S = 10.0

_TASKS: dict[Step, Callable[..., Any]] = {
    Step.DUPLICATE: duplicate,
    Step.REBUILD: rebuild,
    Step.FAIL_ALIKE: fail_alike,
}


class Running:
    """A copy job that is being carried out.

    Attributes:
        call: what was asked for.
        job: what is to be done.
        begun_at: by the monotonic clock.
        tasks: how many run now.
        waits_for_turn: whether it is in the queue of jobs that have tasks to run.
        taken_as: what the shard answered that has taken the copies.
        completions: what to set when it is over; guarded by the actor's lock.
        is_over: the copies are the shard's, or there are none.
    """

    def __init__(self, call: CopyCall, refs: Sequence[Any]) -> None:
        self.call = call
        slots = [(None if actors.is_actor_handle(ref) else ref.binary(), ref) for ref in refs]
        self.job = CopyJob(slots, ready=call.ready)
        self.begun_at = time.monotonic()
        self.tasks = 0
        self.waits_for_turn = False
        self.taken_as = b""
        self.completions: list[asyncio.Future[bytes]] = []
        self.is_over = False

    @property
    def short_id(self) -> str:
        """The lease's short id."""
        return self.call.lease[:4].hex()


class _Task(NamedTuple):
    """A task that runs. `copy` is the reference of what it makes; `node` is where it was to run, if that was said."""

    running: Running
    step: Step
    id_: bytes
    copy: Ref
    node: str | None


class Runner:
    """Carries out the jobs of one copy owner.

    Args:
        nodes: the cluster's, for where tasks run.
        over: called with each job that has a result, and that, once. It has to `drop` the job.
    """

    def __init__(self, nodes: Nodes, over: Callable[[Running, list[Any] | NotCopyable], None]) -> None:
        self._nodes = nodes
        self._over = over
        # All of these hold something of jobs that are not over only: `drop` takes it out.
        self._awaited: dict[
            Ref, list[tuple[Running, bytes]]
        ] = {}  # objects that don't exist yet, and who waits for them
        self._turns: deque[Running] = deque()  # jobs with tasks to run, each once
        self._tasks: dict[Ref, _Task] = {}  # by the reference that shows that a task is over; at most _AT_ONCE

    def begin(self, running: Running) -> None:
        """A new job."""
        self._go_on(running)

    def drop(self, running: Running) -> None:
        """A job is over: hold nothing of it any more."""
        import ray

        running.is_over = True
        for report in [report for report, task in self._tasks.items() if task.running is running]:
            del self._tasks[report]
            with contextlib.suppress(Exception):
                ray.cancel(report, force=True)  # it may never end, and it keeps what it copies
        for ref in [ref for ref, rows in self._awaited.items() if any(each is running for each, _ in rows)]:
            self._awaited[ref] = [row for row in self._awaited[ref] if row[0] is not running]
            if not self._awaited[ref]:
                del self._awaited[ref]
        running.job.clear()

    def look(self) -> None:
        """Wait until an object exists or a task is over, or until it is time to look for new work; go on with what is ready."""
        import ray

        waiting = [*self._tasks, *self._awaited]
        if not waiting:
            return
        ready, _ = ray.wait(waiting, timeout=_LOOKS_S, fetch_local=False)
        if len(waiting) > 1:
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)
        for ref in ready:
            if ref in self._tasks:
                task = self._tasks.pop(ref)
                task.running.tasks -= 1
                self._do(task.running, partial(self._task_over, task, ref))
            for running, id_ in self._awaited.pop(ref, ()):
                self._do(running, partial(running.job.exists, id_))

    def run_tasks(self) -> None:
        """Run tasks, each job in its turn, as far as there is room: for all jobs together, and for each (its tasks may never end)."""
        full = 0  # jobs in a row that have no room
        while len(self._tasks) < _AT_ONCE and full < len(self._turns):
            running = self._turns.popleft()
            if running.is_over or not running.job.tasks:
                running.waits_for_turn = False
                continue
            if running.tasks < _AT_ONCE_EACH:
                full = 0
                self._do(running, partial(self._run, running, *running.job.tasks.popleft()))
            else:
                full += 1
            self._turns.append(running)

    def _run(self, running: Running, step: Step, id_: bytes) -> None:
        """Submit a task."""
        job = running.job
        node = self._nodes.for_copy(job.ref(id_), at_home=running.call.at_home)
        args = (job.copies_inside(id_),) if step is Step.REBUILD else ()
        # What `fail_alike` makes is an error: it is only waited for.
        copy, report = submit(_TASKS[step], job.ref(id_), args, env=running.call.env, node=node)
        self._tasks[report] = _Task(running, step, id_, copy, node)
        running.tasks += 1
        job.begun(step, id_, copy)

    def _task_over(self, task: _Task, report: Ref) -> None:
        """A task is over: tell the job what came of it."""
        import ray

        job = task.running.job
        try:
            said: Any = None if task.step is Step.FAIL_ALIKE else fetch(report)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
            job.crashed(task.step, task.id_)  # the last: Ray has killed it, as memory was short on its node
        except Exception as error:
            home = workers.node_and_process()[0]
            if packages.missing(error) is not None and task.node != home:
                # Workers there can't even begin it.
                self._nodes.lacks(task.node)
                job.crashed(task.step, task.id_)
            else:
                job.fail(_failed(error))  # whatever it is, it is why there is no copy
        else:
            if task.step is Step.DUPLICATE:
                job.duplicated(task.id_, task.copy, said)
            else:
                job.finished(task.id_)

    def _do(self, running: Running, step: Callable[[], None]) -> None:
        """A step of a job. One that fails ends that job, and no other."""
        if running.is_over:
            return
        try:
            step()
        except Exception as error:
            logger.warning("lease %s could not be made durable", running.short_id, exc_info=True)
            running.job.fail(_failed(error))
        self._go_on(running)

    def _go_on(self, running: Running) -> None:
        """A job may have something new to do, or may be over."""
        if running.is_over:
            return
        job = running.job
        while job.awaited:
            id_ = job.awaited.popleft()
            self._awaited.setdefault(job.ref(id_), []).append((running, id_))
        if job.tasks and not running.waits_for_turn:
            running.waits_for_turn = True
            self._turns.append(running)
        if job.result is not None:
            running.is_over = True
            try:
                self._over(running, job.result)
            except Exception:  # other jobs go on
                logger.warning("the copies of lease %s could not be delivered", running.short_id, exc_info=True)


def _failed(error: Exception) -> NotCopyable:
    """Of a task's error, the last line is what went wrong there; above it Ray has put the lines of the task."""
    text = f"{type(error).__name__}: {error}"
    return NotCopyable(Why.FAILED, text.strip().rpartition("\n")[2])


def fetch(ref: Ref) -> Any:
    """`ray.get`, which in an actor with an event loop warns of blocking the loop even if another thread calls it."""
    try:
        return ref.future().result(_ANSWER_S)
    except concurrent.futures.TimeoutError:
        raise TimeoutError(f"no answer within {_ANSWER_S:g} s") from None  # another class before Python 3.11
