"""Mistakes of a user with where, when, and with what installed; and the account of all mistakes that are tried."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support import (
    mistakes,
    wrong_amounts,
    wrong_arguments,
    wrong_ends,
    wrong_environments,
    wrong_installations,
    wrong_kinds,
    wrong_orders,
    wrong_places,
    wrong_targets,
    wrong_values,
)
from tests.support.environment import ROOT
from tests.support.mistakes import Mistake
from tests.support.processes import Driver
from tests.support.wrong_installations import Program


@pytest.mark.parametrize("imported", [False, True])
def test_before_init(imported: bool) -> None:
    """Each call that needs the registry says that `ray.init` is missing; none starts a Ray, or waits for one."""
    code = f"from tests.support import wrong_places; wrong_places.before_init(imported={imported})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert json.loads(done.stdout) == [], done.stderr


@pytest.mark.parametrize("place", ["after_shutdown", "in_a_fork"])
def test_places_without_a_connection(driver: Driver, cluster: str, place: str) -> None:
    """Each call that needs the registry says at once where it is made."""
    assert driver(f"from tests.support import wrong_places; wrong_places.{place}()") == []


@pytest.mark.long
def test_in_a_setup_hook(cluster: str) -> None:
    """Each call but `init`."""
    code = f"from tests.support import wrong_places; wrong_places.in_a_hook({cluster!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_wrong_environments() -> None:
    """Each variable, with what it can't be, and mistyped; whoever asks first is told."""
    found = mistakes.verdicts(wrong_environments.mistakes(), mistakes.without_ray())
    assert not found


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(program, id=program.name, marks=[pytest.mark.long] if number % 3 else [])
        for number, program in enumerate(wrong_installations.PROGRAMS)
    ],
)
def test_wrong_installations(program: Program) -> None:
    """The last line that the user sees names what is missing, or says what to install."""
    payload = str(mistakes.GOLDEN / "payload-v1-one.bin")
    command = [sys.executable, "-c", wrong_installations.BEGIN + program.code, ",".join(program.missing), payload]
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - begun < 20  # to import is most of it
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(program.error + ": ")
    assert re.search(program.says, last)


def test_silence_would_be_noticed() -> None:
    """Control: a mistake that is taken silently, or badly in any other way, is judged wrong."""
    given = mistakes.without_ray()
    lease = given.handle.lease_id

    def raises(error: BaseException, after_s: float = 0.0) -> Any:
        def do(_: mistakes.Given) -> None:
            time.sleep(after_s)
            raise error

        return do

    rows = [
        (Mistake("fine", raises(ValueError("do this")), ValueError, "do this"), ""),
        (Mistake("silent", lambda _: 5, ValueError, ""), "taken silently, for 5"),
        (Mistake("another", raises(KeyError("do this")), ValueError, "do this"), "raises KeyError, not ValueError"),
        (Mistake("a kind of it", raises(ConnectionError("")), OSError, ""), "raises ConnectionError, not OSError"),
        (Mistake("no remedy", raises(ValueError("no")), ValueError, "do this"), "does not say 'do this'"),
        (Mistake("slow", raises(ValueError(""), 2.1), ValueError, ""), r"took 2\.\d s"),
        (Mistake("long", raises(ValueError("x" * 1000)), ValueError, ""), "says 1000 characters"),
        (Mistake("an id", raises(ValueError(f"no {lease}")), ValueError, ""), "gives away a lease's id"),
        (Mistake("a text", raises(ValueError(str(given.handle)[-60:])), ValueError, ""), "gives away a handle's text"),
        (Mistake("a value", raises(ValueError(mistakes.SECRET)), ValueError, ""), "gives away what is in the payload"),
    ]
    for row, wanted in rows:
        found = mistakes.verdict(row, given)
        assert re.search(wanted, found) if wanted else not found


def test_every_public_parameter_has_its_mistakes() -> None:
    """A new one needs a kind in `wrong_arguments`."""
    unknown = [
        f"{function.name}: {parameter}"
        for function in wrong_arguments.public()
        for parameter in function.signature.parameters.values()
        if wrong_kinds.wrong(function.name, parameter) is None
    ]
    assert not unknown
    names = {function.name for function in wrong_arguments.public()}
    assert {"dumps", "aio.loads", "SafeRef.renew", "Pickler", "Unpickler", "Scope.keep"} <= names


def test_there_are_two_hundred() -> None:
    """Counted once each, however many functions take the same argument; half of them are written by hand."""
    arguments = {
        (each.name, parameter.name)
        for function in wrong_arguments.public()
        for parameter in function.signature.parameters.values()
        for each in wrong_kinds.wrong(function.name, parameter) or ()
    }
    ends = sum(len(wrong_ends.after(end, b"")) for end in wrong_ends.ENDS)
    places = 4 * len(wrong_places.CALLS) + 2 * len(wrong_places.WITH_REFERENCE)
    by_hand = [*wrong_orders.ORDERS, *wrong_values.VALUES, *wrong_amounts.AMOUNTS, *wrong_targets.TARGETS]
    counts = {
        "arguments": len(arguments),
        "calls with wrong arguments": sum(
            len(list(wrong_arguments.mistakes(function))) for function in wrong_arguments.public()
        ),
        "ends": ends,
        "places": places,
        "environments": len(list(wrong_environments.mistakes())),
        "installations": len(wrong_installations.PROGRAMS),
        "by hand": len(by_hand),
    }
    print(counts)
    assert len({each.name for each in by_hand}) == len(by_hand)
    assert counts["arguments"] >= 150
    assert counts["by hand"] + len(wrong_ends.ENDS) + counts["installations"] >= 100
