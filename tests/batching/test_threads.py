"""What is put aside is done by a few threads that come and go; without Ray."""

from __future__ import annotations

import threading

import pytest
from safe_refs.registry.aside import Aside

from safe_refs.registry import aside
from tests.support.waiting import wait_until


def test_all_is_done_by_a_few_threads_which_go() -> None:
    """Also if a job fails, and if all threads are busy for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aside, "_IDLE_S", 0.05)
        pool, gate, lock = Aside(), threading.Event(), threading.Lock()
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
        assert pool._threads == aside._MOST
        gate.set()
        wait_until(lambda: len(done) == 50)
        assert sorted(done) == list(range(50))
        assert len(names) <= aside._MOST
        wait_until(lambda: pool._threads == 0)


def test_where_no_thread_can_be_had_it_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is out of threads loses nothing."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    pool = Aside()
    pool.run(lambda: done.append(1))
    assert done == [1]
    assert (pool._threads, list(pool._jobs)) == (0, [])
