"""Random programs of `init`, the environment, `shutdown` and reconnections, in a driver and two actors of its job, against a model.

Run it as a script of its own, in a driver of its own: `python -m tests.support.settings_programs ADDRESS PROGRAMS SEED`. It prints
figures as JSON, or the first program that the model did not foresee.
"""

from __future__ import annotations

import tests.support.environment  # noqa: F401 # first of all: Ray reads the environment when it is imported

# isort: split
import json
import math
import os
import random
import sys
from collections import Counter
from typing import Any

import ray

import safe_refs
from safe_refs import config

REGISTRIES = ("programs-a", "programs-b")
# What an argument of `init` may be, and what is refused; the limits are the registry's, and have tests of their own.
VALUES: dict[str, tuple[Any, ...]] = {
    "registry": REGISTRIES,
    "timeout": (7.5, 11),
    "durable_timeout": (99, 100.0),
    "ttl": (30, 45.5, math.inf),
    "require_ttl": (True, False),
    "wait": (True, False),
}
REFUSED: dict[str, tuple[Any, ...]] = {
    "registry": ("a:1", "", 5, "x" * 65),
    "timeout": (0, -1, "5", True, math.nan),
    "ttl": (0, "soon", False),
    "require_ttl": (1, "yes"),
    "wait": ("no", 0),
    "shards": (0, 1.5),
    "replicas": (True, 0),
    "max_leases": (0, "many"),
}
TEXTS: dict[str, tuple[str, ...]] = {
    "registry": ("programs-b", "", "a:1"),
    "timeout": ("8", "", "soon", "-1"),
    "ttl": ("20", "inf", "", "0"),
    "require_ttl": ("1", "no", "", "maybe"),
    "wait": ("0", "on", "", "False", "maybe", "-1"),
}
FIELDS = {
    "registry": "registry",
    "timeout": "timeout_s",
    "durable_timeout": "durable_timeout_s",
    "ttl": "ttl_s",
    "require_ttl": "require_ttl",
    "wait": "wait",
}
DEFAULTS = {
    "registry": "default",
    "timeout": 30,
    "durable_timeout": 600,
    "ttl": None,
    "require_ttl": False,
    "wait": True,
}


def init(arguments: dict[str, Any]) -> str | None:
    """Call `init` in this process; the error's type, if it is refused."""
    try:
        safe_refs.init(**arguments)
    except (TypeError, ValueError) as error:
        return type(error).__name__
    return None


def put(name: str, text: str) -> None:
    """Set an environment variable of this process."""
    os.environ["SAFE_REFS_" + name.upper()] = text


def seen() -> Any:
    """What holds in this process by `settings`, and by a lease that is made; or the variable that a refusal names."""
    try:
        found = safe_refs.settings()
    except ValueError as error:
        return str(error).split()[3]
    values = {name: getattr(found, field) for name, field in FIELDS.items()}
    try:
        payload = safe_refs.dumps(ray.put(1))
    except ValueError as error:
        return values, {name: found.sources[name] for name in FIELDS}, str(error).split(" ", 4)[:4]
    info = safe_refs.inspect(payload)
    safe_refs.flush()
    assert safe_refs.release(payload) == 1  # it was held
    soon = bool(info.address and info.address.soon)
    return values, {name: found.sources[name] for name in FIELDS}, [info.registry, info.terms.get("ttl"), not soon]


class Process:
    """An actor of the job: the functions above, in its process."""

    def init(self, arguments: dict[str, Any]) -> str | None:
        """See there, as for all."""
        return init(arguments)

    def put(self, name: str, text: str) -> None:
        """Set a variable."""
        put(name, text)

    def seen(self) -> Any:
        """What holds."""
        return seen()


class Model:
    """What each process is to see: what its own `init` said, the driver's, the environment, the defaults."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = [{}, {}, {}]
        self.texts: list[dict[str, str]] = [{}, {}, {}]
        self.job: dict[str, Any] = {}

    def environment(self, process: int) -> dict[str, Any] | str:
        """The values of its variables, or the first that is wrong."""
        found: dict[str, Any] = {}
        for setting in config.SETTINGS:
            text = self.texts[process].get(setting.name)
            if text:
                try:
                    found[setting.name] = _READ[setting.name](text)
                except (ValueError, KeyError):
                    return setting.variable
        return found

    def layers(self, process: int) -> tuple[dict[str, Any], dict[str, str]] | str:
        """Its settings with who says so; or the variable that is wrong."""
        environment = self.environment(process)
        if isinstance(environment, str):
            return environment
        values, sources = dict(DEFAULTS), dict.fromkeys(DEFAULTS, "default")
        job = self.job if process else {}
        for name in DEFAULTS:
            for source, said in (
                ("SAFE_REFS_" + name.upper(), environment),
                ("job", job),
                ("init", self.given[process]),
            ):
                if name in said:
                    values[name], sources[name] = said[name], source
        values["ttl"] = None if values["ttl"] == math.inf else values["ttl"]
        return values, sources

    def seen(self, process: int) -> Any:
        """What `seen` returns there."""
        found = self.layers(process)
        if isinstance(found, str):
            return found
        values, sources = found
        if values["require_ttl"] and values["ttl"] is None:
            return values, sources, ["a", "lease", "needs", "a"]
        return values, sources, [values["registry"], values["ttl"], values["wait"]]

    def init(self, process: int, arguments: dict[str, Any], *, good: bool) -> str | None:
        """What `init` returns there, if each argument by itself is good or not."""
        if not good:
            return "refused"
        before, self.given[process] = self.given[process], arguments
        if isinstance(found := self.layers(process), str):
            self.given[process] = before
            return "refused"
        if process == 0:
            # What the driver's own environment says is passed on, too.
            self.job = {name: value for name, value in found[0].items() if found[1][name] != "default"}
        return None


def _name(text: str) -> str:
    if ":" in text:
        raise ValueError
    return text


def _span(text: str) -> float:
    if not float(text) > 0:
        raise ValueError
    return float(text)


def _flag(text: str) -> bool:
    return {"1": True, "on": True, "0": False, "no": False}[text]


_READ: dict[str, Any] = {"registry": _name, "timeout": _span, "ttl": _span, "require_ttl": _flag, "wait": _flag}


def run(address: str, programs: int, seed: int) -> dict[str, int]:
    """Run programs; how often each step was done."""
    rng, done = random.Random(seed), Counter[str]()  # noqa: S311 # not for secrets
    processes: list[Any] = []
    model = Model()
    for number in range(programs):
        if not processes or rng.random() < 0.01:
            # Nothing of the last connection holds in the next.
            ray.shutdown()
            ray.init(address, log_to_driver=False)
            processes = [ray.remote(num_cpus=0)(Process).remote() for _ in range(2)]
            model, driver_texts = Model(), model.texts[0]
            model.texts[0] = driver_texts
            done["reconnect"] += 1
        log: list[str] = [f"program {number} of seed {seed}"]
        for _ in range(rng.randint(2, 6)):
            process = rng.choice((0, 0, 1, 2))
            step = rng.choice(("init", "init", "refused", "environment", "nothing", "shutdown"))
            if step == "shutdown":
                step = "shutdown" if rng.random() < 0.1 else "init"
            arguments = {name: rng.choice(values) for name, values in VALUES.items() if rng.random() < 0.3}
            if step == "refused":
                name = rng.choice(list(REFUSED))
                arguments[name] = rng.choice(REFUSED[name])
            if step in ("init", "refused"):
                log.append(f"init({arguments}) in {process}")
                got = init(arguments) if process == 0 else ray.get(processes[process - 1].init.remote(arguments))
                expected = model.init(process, arguments, good=step == "init")
                assert (got is None) == (expected is None), ("\n".join(log), got, expected)
            elif step == "environment":
                name = rng.choice(list(TEXTS))
                text = rng.choice((*TEXTS[name][:3], *TEXTS[name]))
                log.append(f"{name}={text!r} in {process}")
                model.texts[process][name] = text
                put(name, text) if process == 0 else ray.get(processes[process - 1].put.remote(name, text))
            elif step == "shutdown":
                found = model.layers(0)
                log.append("shutdown() in 0")
                try:
                    safe_refs.shutdown(force=True)
                    assert not isinstance(found, str), log
                    assert safe_refs.stats() is None, log
                except ValueError:
                    assert isinstance(found, str), log
            done[step] += 1
            for each in range(3):
                got = seen() if each == 0 else ray.get(processes[each - 1].seen.remote())
                expected = model.seen(each)
                got = got if isinstance(got, str) else tuple(got)
                assert got == expected, "\n".join((*log, f"in {each}:", f"  is       {got}", f"  expected {expected}"))
                done["looks"] += 1
    return dict(done)


if __name__ == "__main__":
    figures = run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    for registry in (*REGISTRIES, "default"):
        safe_refs.shutdown(registry, force=True, timeout=30)
    print(json.dumps(figures))
