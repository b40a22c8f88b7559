"""`dumps` and `loads` of references: one, many, in bulk, by threads, and without waiting; and what importing costs.

Each figure is a ratio of two things timed alternately; rates are counts over the same run.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import safe_refs
from benchmarks.lines import Line, Section, ratio, small_ray, spread


class HomeMade:
    """What one writes oneself: an actor with a dictionary, and a call for each reference."""

    def __init__(self) -> None:
        self.held: dict[bytes, Any] = {}

    def put(self, key: bytes, refs: list[Any]) -> None:
        self.held[key] = refs[0]

    def get(self, key: bytes) -> list[Any]:
        return [self.held[key]]


class Bare:
    """A call that carries references, or returns them, and nothing else."""

    def __init__(self) -> None:
        self.held: dict[bytes, Any] = {}

    def hold(self, call: tuple[bytes, Any]) -> None:
        self.held[call[0]] = call[1]

    def give(self, key: bytes) -> Any:
        return self.held[key]

    def make(self, count: int) -> list[Any]:
        """Put objects, for others to borrow."""
        import ray

        return [ray.put(b"y" * 1000) for _ in range(count)]


def measure(rounds: int) -> list[Section]:
    """All of it.

    Args:
        rounds: runs of each small call; a part of it for larger ones.
    """
    with small_ray():
        sections = [_borrowed(rounds // 2), _calls(rounds), _many(max(15, rounds // 40))]
    return [*sections, _imports(15)]


def _borrowed(rounds: int) -> Section:
    """Measured first: for each borrowed reference Ray goes through all that this process has, and later there are thousands."""
    import ray

    owner: Any = ray.remote(Bare).options(num_cpus=0).remote()
    # The same object again within some milliseconds is a case of its own, so use many objects.
    borrowed = itertools.cycle(ray.get(owner.make.remote(50)))
    owned = itertools.cycle([ray.put(b"z" * 1000) for _ in range(50)])
    made: list[bytes] = []
    line = ratio(
        "dumps, 1 reference: borrowed ÷ owned",
        lambda: made.append(safe_refs.dumps(next(borrowed))),
        lambda: made.append(safe_refs.dumps(next(owned))),
        rounds,
        1.6,
    )
    safe_refs.release(made)
    text = (
        "A process that only borrows references calls `dumps` in a tight loop. Before `dumps` returns, it reports to the owner who "
        "holds the reference now. If one report follows another within milliseconds, `dumps` waits until the owner has processed it."
    )
    return Section("Borrowed references", text, [line])


def _calls(rounds: int) -> Section:
    import ray
    from ray import cloudpickle

    bare: Any = ray.remote(Bare).options(num_cpus=0).remote()
    leaky: Any = cloudpickle.dumps
    home_made: Any = ray.remote(HomeMade).options(num_cpus=0).remote()
    ref = ray.put(b"x" * 1000)
    many = [ray.put(number) for number in range(1000)]
    ray.get(bare.hold.remote((b"one", [ref])))
    ray.get(bare.hold.remote((b"many", many)))
    ray.get(home_made.put.remote(b"one", [ref]))
    large = os.urandom(2**24)
    made: list[bytes] = []
    one, thousand = safe_refs.dumps(ref), safe_refs.dumps(many)
    made += [one, thousand]
    few = max(15, rounds // 40)

    def pickle_and_call() -> None:
        pickle.dumps(large, 5)
        ray.get(bare.hold.remote((b"one", [ref])))

    def one_by_one() -> None:
        for each in many:
            ray.get(home_made.put.remote(uuid.uuid4().bytes, [each]))

    lines = [
        ratio(
            "dumps, 1 reference ÷ bare call",
            lambda: made.append(safe_refs.dumps(ref)),
            lambda: ray.get(bare.hold.remote((b"one", [ref]))),
            rounds,
            1.08,
        ),
        ratio(
            "loads, 1 reference ÷ bare call",
            lambda: safe_refs.loads(one),
            lambda: ray.get(bare.give.remote(b"one")),
            rounds,
            1.08,
        ),
        ratio(
            "dumps, 1 reference ÷ home-made registry",
            lambda: made.append(safe_refs.dumps(ref)),
            lambda: ray.get(home_made.put.remote(uuid.uuid4().bytes, [ref])),
            rounds,
            None,
        ),
        ratio(
            "loads, 1 reference ÷ home-made registry",
            lambda: safe_refs.loads(one),
            lambda: ray.get(home_made.get.remote(b"one")),
            rounds,
            None,
        ),
        ratio(
            "dumps, 1 reference ÷ ray.cloudpickle.dumps, which pins it for good",
            lambda: made.append(safe_refs.dumps(ref)),
            lambda: leaky(ref),
            rounds,
            None,
        ),
        _released(
            "dumps, 1,000 references ÷ bare call",
            lambda: safe_refs.dumps(many),
            lambda: ray.get(bare.hold.remote((b"many", many))),
            few,
            0.4,
        ),
        ratio(
            "loads, 1,000 references ÷ bare call",
            lambda: safe_refs.loads(thousand),
            lambda: ray.get(bare.give.remote(b"many")),
            few,
            0.4,
        ),
        _released(
            "dumps, 1,000 references ÷ home-made registry, a call for each",
            lambda: safe_refs.dumps(many),
            one_by_one,
            5,
            None,
        ),
        _released(
            "dumps, 16 MB and 1 reference ÷ pickle and bare call",
            lambda: safe_refs.dumps((large, ref)),
            pickle_and_call,
            few,
            1.15,
        ),
    ]
    safe_refs.release(made)
    text = (
        "The lower limit is a bare call of a Ray actor that takes the same references in a list, or returns them, and whose answer "
        "is awaited. The home-made registry is an actor with a dictionary: one call for each reference, and it never forgets one."
    )
    return Section("References, out and in", text, lines)


def _many(rounds: int) -> Section:
    import ray

    ref = ray.put(b"x" * 1000)
    lines = [*_pipelining(ref, rounds), *_threads(ref, rounds), *_bulk(ref, rounds)]
    return Section("Many at once, and without waiting", "One reference in each payload.", lines)


def _released(
    what: str, make: Callable[[], bytes], other: Callable[[], Any], rounds: int, target: float | None
) -> Line:
    """The ratio of a `dumps` whose lease is released outside of the time that counts."""
    ratios = []
    for number in range(rounds + 3):
        took = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            payload = (make, other)[which]()
            took[which] = time.perf_counter() - begun
            if which == 0:
                safe_refs.release(payload)
        ratios.append(took[0] / took[1])
    return spread(what, ratios[3:], "times", target)


def _pipelining(ref: Any, rounds: int) -> list[Line]:
    """`wait=False`, for the caller against `ray.cloudpickle`, in all, and against waiting."""
    from ray import cloudpickle

    leaky: Any = cloudpickle.dumps
    obj = {"x": ref}
    count = 1000
    caller, rate, gain = [], [], []
    safe_refs.flush()
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(count):
            leaky(obj)  # it pins the object for good, which is one object here
        leaking = time.perf_counter() - begun
        begun = time.perf_counter()
        payloads = [safe_refs.dumps(obj, wait=False) for _ in range(count)]
        returned = time.perf_counter() - begun
        safe_refs.flush()
        held = time.perf_counter() - begun
        safe_refs.release(payloads)
        begun = time.perf_counter()
        payloads = [safe_refs.dumps(obj) for _ in range(50)]
        waiting = (time.perf_counter() - begun) / 50
        safe_refs.release(payloads)
        caller.append(returned / leaking)
        rate.append(count / held)
        gain.append(waiting / (held / count))
    return [
        spread("dumps(wait=False), for the caller ÷ ray.cloudpickle.dumps", caller, "times", 3.0),
        spread("dumps(wait=False), leases held", rate, "/s", 15_000, at_most=False),
        spread("dumps(wait=False), leases held ÷ waiting in one thread", gain, "times", 15.0, at_most=False),
    ]


def _threads(ref: Any, rounds: int) -> list[Line]:
    """Sixteen threads that wait, against one."""
    gains = []
    for _ in range(max(5, rounds // 3)):
        rates = []
        for threads in (1, 16):
            made: list[bytes] = []

            def work(made: list[bytes] = made) -> None:
                made.extend(safe_refs.dumps(ref) for _ in range(50))

            workers = [threading.Thread(target=work) for _ in range(threads)]
            begun = time.perf_counter()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            rates.append(len(made) / (time.perf_counter() - begun))
            safe_refs.release(made)
        gains.append(rates[1] / rates[0])
    return [spread("16 threads, waiting ÷ one thread", gains, "times", 5.0, at_most=False)]


def _bulk(ref: Any, rounds: int) -> list[Line]:
    """A thousand payloads at once, against one by one."""
    payloads = safe_refs.dumps_many([{"n": number, "ref": ref} for number in range(1000)])
    gains = []
    for _ in range(max(5, rounds // 3)):
        begun = time.perf_counter()
        safe_refs.loads_many(payloads)
        together = time.perf_counter() - begun
        begun = time.perf_counter()
        for payload in payloads[:100]:
            safe_refs.loads(payload)
        gains.append((time.perf_counter() - begun) * 10 / together)
    safe_refs.release(payloads)
    return [spread("loads_many of 1,000 ÷ one by one", gains, "times", 15.0, at_most=False)]


def _imports(rounds: int) -> Section:

    def ms(code: str) -> float:
        program = f"import time\n{code.replace('BEGIN', 'begun = time.perf_counter()')}\nprint((time.perf_counter() - begun) * 1e3)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=compiled)
        return float(done.stdout)

    # As pip installs it: with byte code, which this environment may have told Python not to write.
    compiled = {key: text for key, text in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    ms("BEGIN\nimport ray, safe_refs")

    lines = [
        spread("import safe_refs", [ms("BEGIN\nimport safe_refs") for _ in range(rounds)], "ms", 50.0),
        spread(
            "import safe_refs, after ray",
            [ms("import ray\nBEGIN\nimport safe_refs") for _ in range(rounds)],
            "ms",
            20.0,
        ),
    ]
    return Section("Importing", "Each in a process of its own.", lines)
