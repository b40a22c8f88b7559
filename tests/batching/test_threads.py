"""Jobs in the background are run by a few threads that come and go. Without Ray."""

from __future__ import annotations

import threading

import pytest

from safe_refs import threads
from safe_refs.threads import Background
from tests.support.waiting import wait_until


def test_a_few_threads_run_all_jobs_and_end() -> None:
    """Also if a job fails, and if all threads are busy for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_IDLE_S", 0.05)
        pool, gate, lock = Background(), threading.Event(), threading.Lock()
        done: list[int] = []
        names: set[str] = set()

        def work(number: int) -> None:
            gate.wait(10)
            with lock:
                done.append(number)
                names.add(str(threading.get_ident()))
            if number % 5 == 0:
                raise ZeroDivisionError

        for number in range(50):
            pool.run(lambda number=number: work(number))  # type: ignore[misc] # mypy can't infer a lambda's default
        assert pool._threads == threads._MOST_THREADS
        gate.set()
        wait_until(lambda: len(done) == 50)
        assert sorted(done) == list(range(50))
        assert len(names) <= threads._MOST_THREADS
        wait_until(lambda: pool._threads == 0)


def test_if_no_thread_can_be_started_the_caller_runs_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is out of threads loses no job."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    pool = Background()
    pool.run(lambda: done.append(1))
    assert done == [1]
    assert (pool._threads, list(pool._jobs)) == (0, [])
