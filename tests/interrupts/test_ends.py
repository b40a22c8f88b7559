"""The end of Python, and event loops one after the other: what is called there works, or raises a named error at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time

import ray

import safe_refs
from safe_refs import aio
from tests.support.environment import ROOT
from tests.support.processes import run_python
from tests.support.values import got
from tests.support.waiting import wait_until

ENDING = """
import atexit, os, sys, threading, time
def attempt(what):
    begun = time.monotonic()
    try:
        data = safe_refs.dumps({"ref": ref})
        safe_refs.loads(data)
        said = f"released {safe_refs.release(data)}"
    except BaseException as error:
        said = type(error).__name__
    slow = "" if time.monotonic() - begun < 5 else " slowly"
    os.write(1, f"{what}: {said}{slow}\\n".encode())

atexit.register(lambda: attempt("after Ray has ended"))
import ray, safe_refs
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
ref = ray.put([1])
"""


def ended(code: str, address: str, codes: tuple[int, ...] = (0,)) -> list[str]:
    """What a program says, which has to come to its end by itself, and well."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ENDING + textwrap.dedent(code), address],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode in codes, done.stderr
    assert "Fatal" not in done.stderr
    assert time.monotonic() - begun < 60
    return done.stdout.splitlines()


IMPORTING = """
import json, sys, threading
import safe_refs
payload = open(sys.argv[1], "rb").read()
calls = [
    lambda: safe_refs.dumps({"plain": 1}), lambda: safe_refs.loads(payload), lambda: safe_refs.release(payload),
    lambda: safe_refs.flush(), lambda: safe_refs.leases(), lambda: safe_refs.Pickler(open("/dev/null", "wb")).dump([1]),
]
seen = {}

def attempt():
    for number, call in enumerate(calls):
        try:
            call()
            said = "works"
        except BaseException as error:
            said = type(error).__name__
        seen.setdefault(str(number), []).append(said)

class Finder:
    count = 0
    def find_spec(self, name, *_):
        if name.split(".")[0] == "ray" and not threading.current_thread().name.startswith("attempt"):
            Finder.count += 1
            if Finder.count % 5 == 0:
                attempt()
                thread = threading.Thread(target=attempt, name="attempt", daemon=True)
                thread.start()
                thread.join(5)
                seen.setdefault("waits", []).append(thread.is_alive())
        return None

sys.meta_path.insert(0, Finder())
import ray
attempt()
print(json.dumps({key: sorted(set(said)) for key, said in seen.items()}))
"""


def test_in_the_middle_of_importing_ray() -> None:
    """In a handler there, or another thread: plain data works, what needs Ray gets a named error, and nobody waits for the import."""
    found = run_python(IMPORTING, str(ROOT / "tests" / "golden" / "payload-v1-one.bin"))
    assert found == {
        "0": ["works"],
        "1": ["RegistryUnavailableError"],
        "2": ["RegistryUnavailableError"],
        "3": ["works"],
        "4": ["RegistryUnavailableError"],
        "5": ["works"],
        "waits": [False],
    }


def test_atexit_and_destructors_at_the_very_end(cluster: str) -> None:
    """Before Ray has ended it works; behind that there is a named error, at once. Plain data always works."""
    code = """
    atexit.register(lambda: attempt("before Ray has ended"))

    class Late:
        def __del__(self):
            attempt("at the very end")
            os.write(1, f"plain: {safe_refs.loads(safe_refs.dumps([1, 2]))}\\n".encode())

    late = Late()
    late.me = late
    """
    assert ended(code, cluster) == [
        "before Ray has ended: released 1",
        "after Ray has ended: RegistryUnavailableError",
        "at the very end: RegistryUnavailableError",
        "plain: [1, 2]",
    ]


def test_daemon_threads_do_not_keep_a_process(cluster: str) -> None:
    """They are in the middle of calls of all kinds when Python ends; and start no other Ray then.

    A thread that uses Ray just when Ray ends makes Ray end the process, with status 1, also without safe_refs.
    """
    code = """
    os.environ["SAFE_REFS_TTL"] = "5"  # the end may come between a `dumps` and its `release`

    rounds = threading.Semaphore(0)
    def work():
        while True:
            try:
                data = safe_refs.dumps({"ref": ref})
                safe_refs.loads(data)
                safe_refs.release([data, safe_refs.dumps(ref, wait=False)])
                rounds.release()
            except safe_refs.RegistryUnavailableError:
                return

    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    for _ in range(40):
        assert rounds.acquire(timeout=20)  # all are in the middle of their work
    """
    said = ended(code, cluster, codes=(0, 1))
    assert said in ([], ["after Ray has ended: RegistryUnavailableError"])
    wait_until(lambda: not safe_refs.leases())


def test_an_atexit_hook_may_begin_with_us(cluster: str) -> None:
    """First contact, and threads of ours that begin, when Python has begun to end."""
    code = """
    atexit.register(lambda: safe_refs.flush())
    atexit.register(lambda: [safe_refs.release(safe_refs.dumps(ref, wait=False))])
    others = []
    def hook():
        for _ in range(8):
            try:
                thread = threading.Thread(target=attempt, args=("several at once",))
                thread.start()
                others.append(thread)
            except RuntimeError:  # from Python 3.12 on
                attempt("several at once")
        for thread in others:
            thread.join()
    atexit.register(hook)
    """
    assert ended(code, cluster) == ["several at once: released 1"] * 8 + [
        "after Ray has ended: RegistryUnavailableError"
    ]


def test_event_loops_one_after_the_other(cluster: str) -> None:
    """Nothing of the first loop is needed by the next: references, batches, and what nobody waited for."""
    refs = [ray.put(number) for number in range(20)]

    async def hand_over() -> list[int]:
        payloads = await asyncio.gather(*(aio.dumps(ref, wait=number % 2 == 0) for number, ref in enumerate(refs)))
        loaded = await asyncio.gather(*(aio.loads(payload) for payload in payloads))
        await aio.release(payloads)
        return [got(each) for each in loaded]

    for _ in range(3):
        assert asyncio.run(hand_over()) == list(range(20))
    safe_refs.flush()


def test_a_loop_that_is_closed_in_the_middle_leaves_nothing(cluster: str) -> None:
    """Its tasks are cancelled while they wait for the registry; the next loop goes on."""
    ref = ray.put(1)

    async def begin() -> None:
        for _ in range(10):
            asyncio.ensure_future(aio.dumps(ref))  # noqa: RUF006 # it is to be cancelled by the loop's end
        await asyncio.sleep(0)

    async def whole() -> int:
        found: int = got(await aio.loads(payload))
        return found

    for _ in range(3):
        asyncio.run(begin())
    payload = safe_refs.dumps(ref)
    assert asyncio.run(whole()) == 1
    assert safe_refs.release(payload) == 1
