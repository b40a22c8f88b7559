"""Jobs in the background are run by a few threads that come and go. Without Ray."""

from __future__ import annotations

import threading
import time

import pytest

from safe_refs import threads
from safe_refs.threads import Background, QueueThread
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
        assert len(pool._threads) == threads._MOST_THREADS
        gate.set()
        wait_until(lambda: len(done) == 50)
        assert sorted(done) == list(range(50))
        assert len(names) <= threads._MOST_THREADS
        wait_until(lambda: not pool._threads)


@pytest.mark.parametrize("waits", [True, False], ids=["while a thread waits", "while none does"])
def test_a_caller_that_is_interrupted_does_not_stop_later_jobs(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises as soon as the job has been put: each later job is run, and not behind one that takes long."""
    monkeypatch.setattr(threads, "_IDLE_S", 0.2)
    pool, gate, done = Background(), threading.Event(), threading.Semaphore(0)
    if waits:
        pool.run(done.release)
        assert done.acquire(timeout=10)
        wait_until(lambda: len(pool._waiting) == 1)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_start_if_needed", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.run(lambda: [gate.wait(20)].clear())
    pool.run(done.release)
    assert done.acquire(timeout=5)
    gate.set()
    wait_until(lambda: not pool._threads)
    for _ in range(3):
        pool.run(done.release)
        assert done.acquire(timeout=5)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_pool_keeps_no_job_waiting_while_threads_come_and_go() -> None:
    """However what is put and the ends of its threads meet, and however many put something at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_IDLE_S", 0.0005)
        pool, done = Background(), threading.Semaphore(0)
        missing: list[int] = []

        def put() -> None:
            for number in range(300):
                pool.run(done.release)
                if number % 3 == 0:
                    time.sleep(0.0005)  # as long as a thread waits
                if not done.acquire(timeout=10):
                    missing.append(number)

        putting = [threading.Thread(target=put) for _ in range(4)]
        for each in putting:
            each.start()
        for each in putting:
            each.join(60)
        assert not missing

        def have_ended() -> bool:
            if pool._threads:
                pool._jobs.put(
                    done.release
                )  # wakes one whose `get` has forgotten its timeout, which is CPython's fault
            return not pool._threads

        wait_until(have_ended)
        assert not pool._waiting


def test_if_no_thread_can_be_started_the_caller_runs_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is out of threads loses no job."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    pool = Background()
    pool.run(lambda: done.append(1))
    assert done == [1]
    assert not pool._threads
    assert pool._jobs.empty()


def test_such_a_thread_starts_and_ends_and_loses_nothing() -> None:
    """However what is put and the end of its thread meet, and however many put something at once."""
    done: list[int] = []
    thread: QueueThread[int] = QueueThread("safe_refs-test", done.append, 0.0005)
    for number in range(500):
        thread.put(number)
        if number % 3 == 0:
            time.sleep(0.0005)  # as long as the thread waits
    wait_until(lambda: len(done) == 500)
    assert sorted(done) == list(range(500))
    wait_until(lambda: thread.thread is None)
    thread.put(500)
    wait_until(lambda: done[-1] == 500)


@pytest.mark.parametrize("failure", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_such_a_thread_goes_on_after_what_failed(failure: type[BaseException]) -> None:
    """Others are served all the same, and the thread stays the one that it was. Also if it was to end the thread."""
    done: list[int] = []
    names: set[int] = set()

    def serve(number: int) -> None:
        names.add(threading.get_ident())
        if not number:
            raise failure
        done.append(number)

    thread: QueueThread[int] = QueueThread("safe_refs-test", serve, 5.0)
    thread.put(0)
    wait_until(lambda: thread.thread is not None)
    for number in (1, 0, 2):
        thread.put(number)
    wait_until(lambda: done == [1, 2])
    assert len(names) == 1
    thread.put(None)
    wait_until(lambda: thread.thread is None)


def test_such_a_thread_that_is_dead_is_not_taken_for_alive() -> None:
    """Whatever has ended it before it could say so: the next one who puts something gets another."""
    done: list[int] = []
    thread: QueueThread[int] = QueueThread("safe_refs-test", done.append, 5.0)
    thread.thread = dead = threading.Thread(target=int)
    dead.start()
    dead.join()
    thread.put(1)
    wait_until(lambda: done == [1])
    thread.put(None)


def test_a_pool_goes_on_after_what_was_to_end_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Ray that is shut down raises SystemExit: the jobs behind are done, by the same threads."""
    monkeypatch.setattr(threads, "_IDLE_S", 1.0)
    pool, done = Background(), threading.Semaphore(0)
    names: set[int] = set()

    def end() -> None:
        names.add(threading.get_ident())
        done.release()
        raise SystemExit

    for _ in range(3 * threads._MOST_THREADS):
        pool.run(end)
    for _ in range(3 * threads._MOST_THREADS):
        assert done.acquire(timeout=10)
    assert len(names) <= threads._MOST_THREADS
