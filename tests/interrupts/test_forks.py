"""Forked children: of a parent that is connected, of one that only imported, and of Ray's own workers.

Prefork servers and task queues (Ray issue 31157), and pools of processes (Ray issue 28328), fork whatever state they are in.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import textwrap
from typing import Any

import pytest
import ray

import safe_refs
from tests.support.processes import Driver, run_python

# What a child does is told by a pipe: the result, or the error's name and whether it speaks of the fork; and how long it took.
FORKED = """
import asyncio, multiprocessing, os, select, signal, threading
from safe_refs import aio

def within(manager, action):
    with manager:
        return bool(action())

def forked(action, limit_s=20):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        begun = time.monotonic()
        try:
            said = [action()]
        except BaseException as error:
            said = [type(error).__name__, "forked" in str(error)]
        said = json.dumps([*said, time.monotonic() - begun < 2])
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    try:
        if not select.select([reader], [], [], limit_s)[0]:
            return "hangs"
        return json.loads(os.read(reader, 2000) or b'"crashed"')
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
"""
REFUSED = ["RegistryUnavailableError", True, True]


@pytest.mark.parametrize("first_use", ["before", "after"])
def test_a_child_of_a_connected_parent_is_told_at_once(driver: Driver, first_use: str) -> None:
    """What needs the registry raises a named error, which says what to do. Plain data works. The parent's leases stay."""
    code = f"""
    {"payload = None" if first_use == "after" else "payload = safe_refs.dumps(ray.put([1]), ttl=600)"}
    ref = ray.put([2])
    found = {{
        "plain": forked(lambda: safe_refs.loads(safe_refs.dumps({{"n": [1, 2]}}))),
        "dumps": forked(lambda: bool(safe_refs.dumps(ref))),
        "posted": forked(lambda: bool(safe_refs.dumps(ref, wait=False))),
        "pin": forked(lambda: bool(safe_refs.pin(ref))),
        "leases": forked(lambda: len(safe_refs.leases())),
        "awaited": forked(lambda: bool(asyncio.run(aio.dumps(ref)))),
        "flush": forked(lambda: safe_refs.flush()),
        "a child's child": forked(lambda: forked(lambda: bool(safe_refs.dumps(ref)))),
    }}
    if payload is None:
        payload = safe_refs.dumps(ray.put([1]), ttl=600)
    handle = safe_refs.inspect(payload).handles[0]
    found |= {{
        "loads": forked(lambda: bool(safe_refs.loads(payload))),
        "take": forked(lambda: bool(safe_refs.loads(payload, take=True))),
        "release": forked(lambda: safe_refs.release(payload)),
        "get": forked(lambda: handle.get()),
        "loads, awaited": forked(lambda: bool(asyncio.run(aio.loads(payload)))),
    }}
    calls = {{
        "dumps_many": lambda: bool(safe_refs.dumps_many([ref])),
        "loads_many": lambda: bool(safe_refs.loads_many([payload])),
        "put": lambda: bool(safe_refs.put(1)),
        "resolve": lambda: bool(handle.resolve()),
        "renew": lambda: safe_refs.renew(payload, 600),
        "expires_in_s": lambda: safe_refs.expires_in_s(payload),
        "release_id": lambda: safe_refs.release(handle.lease_id),
        "make_durable": lambda: handle.make_durable(),
        "keepalive": lambda: safe_refs.keepalive(payload, 600).__enter__(),
        "init": lambda: bool(safe_refs.init()),
        "stats": lambda: bool(safe_refs.stats()),
        "shutdown": lambda: safe_refs.shutdown(),
        "pipeline": lambda: within(safe_refs.pipeline(), lambda: safe_refs.dumps(ref)),
    }}
    awaited = {{
        "dumps_many": [[ref]], "loads_many": [[payload]], "pin": [ref], "resolve": [handle], "get": [handle], "release": [payload],
        "renew": [payload, 60], "expires_in_s": [payload], "leases": [], "stats": [], "shutdown": [], "put": [1],
    }}
    for name, given in awaited.items():
        calls["aio." + name] = lambda call=getattr(aio, name), given=given: bool(asyncio.run(call(*given)))
    with safe_refs.scope() as scope:
        safe_refs.dumps(ref)
        calls["a scope's end"] = lambda: scope.__exit__(None, None, None)
        found |= {{name: forked(call) for name, call in calls.items()}}
        assert len(safe_refs.leases()) == 2

    value = ray.get(safe_refs.loads(payload), timeout=30)
    print(json.dumps([found, value, safe_refs.release(payload)]))
    """
    found, value, ended = driver(FORKED + textwrap.dedent(code), timeout=150)
    assert found.pop("plain") == [{"n": [1, 2]}, True]
    assert found.pop("flush") == [None, True]
    assert found.pop("a child's child")[0] == REFUSED
    assert found == dict.fromkeys(found, REFUSED)
    assert (value, ended) == ([1], 1)


def test_a_child_has_no_lock_of_its_parents_threads(driver: Driver) -> None:
    """Forked while other threads are in the middle of calls; a hundred times, as what they hold just then is a matter of luck."""
    code = """
    ref, is_over = ray.put([1]), False

    def work():
        while not is_over:
            safe_refs.release([safe_refs.dumps(ref), safe_refs.dumps(ref, wait=False)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    found = []
    for _ in range(100):
        found.append(forked(lambda: [safe_refs.loads(safe_refs.dumps([1])), safe_refs.flush(), safe_refs.dumps(ref)]))
    is_over = True
    for thread in threads:
        thread.join()
    print(json.dumps([each for each in found if each != ["RegistryUnavailableError", True, True]]))
    """
    assert driver(FORKED + textwrap.dedent(code), timeout=170) == []


@pytest.mark.parametrize("way", ["os.fork", "fork", "forkserver", "spawn"])
def test_children_connect_by_themselves(cluster: str, way: str) -> None:
    """The parent has imported safe_refs, and pickled plain data, before."""
    code = """
    import json, multiprocessing, os, sys, tempfile
    from pathlib import Path
    import safe_refs
    from tests.interrupts.children import serve
    address, way, folder = sys.argv[1:]
    if __name__ == "__main__":
        assert safe_refs.loads(safe_refs.dumps([1, 2])) == [1, 2]
        files = [Path(folder) / str(number) for number in range(2)]
        if way == "os.fork":
            for file in files:
                pid = os.fork()
                if pid == 0:
                    serve(address, file)
                    os._exit(0)
                os.waitpid(pid, 0)
        else:
            children = [multiprocessing.get_context(way).Process(target=serve, args=(address, file)) for file in files]
            for child in children:
                child.start()
            for child in children:
                child.join(60)
        print(json.dumps([file.read_text() for file in files]))
    """
    with tempfile.TemporaryDirectory() as folder:
        assert run_python(code, cluster, way, folder, timeout=120) == ["[3]", "[3]"]


def test_a_pool_of_processes_in_a_task(cluster: str) -> None:
    """As data loaders start: forked from one of Ray's workers, it pickles plain data. What needs the registry is refused at once."""

    @ray.remote(num_cpus=0)
    def work(payload: bytes) -> list[Any]:
        from tests.interrupts.children import try_loads, try_plain

        safe_refs.release(safe_refs.dumps(ray.put(0)))
        pool = multiprocessing.get_context("fork").Pool(2)
        found = [pool.apply_async(try_plain).get(20), pool.apply_async(try_loads, (payload,)).get(20)]
        # Not `terminate`: children have Ray's handler of SIGTERM, and without safe_refs, too, one in sixteen does not end by it.
        pool.close()
        pool.join()
        return found

    payload = safe_refs.dumps(ray.put([1]), ttl=600)
    plain, refused = ray.get(work.remote(payload), timeout=90)
    assert plain == [1, 2]
    assert refused.startswith("RegistryUnavailableError: this process was forked")
    assert ray.get(safe_refs.loads(payload, take=True), timeout=20) == [1]


def test_a_child_that_ends_in_order_ends(driver: Driver) -> None:
    """Python's way to its end, with what is registered for it, waits for nothing of the parent's, and ends no lease."""
    code = """
    payload = safe_refs.dumps(ray.put([1]), ttl=600, wait=False)
    child = multiprocessing.get_context("fork").Process(target=safe_refs.flush)
    child.start()
    child.join(20)
    pid = os.fork()
    if pid == 0:
        from safe_refs._ray import exits
        exits.call_hooks()
        os._exit(7)
    codes = [child.exitcode, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    print(json.dumps([codes, ray.get(safe_refs.loads(payload), timeout=20), safe_refs.release(payload)]))
    """
    assert driver(FORKED + textwrap.dedent(code), timeout=100) == [[0, 7], [1], 1]
