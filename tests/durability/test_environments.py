"""Copies are made with nothing of the job that started the registry, and of objects without references nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray

import safe_refs
from safe_refs._ray import raw
from tests.support.processes import run_python
from tests.support.values import got

# A module of the job's own, and what a program begins with that imports it. What a copying task has is to be seen in its objects.
MODULE = """
import os
VERSION = {version!r}
class Thing:
    def __init__(self, *inside):
        self.inside, self.seen = inside, []
    def __setstate__(self, state):
        self.__dict__ = state
        self.seen = [*self.seen, [VERSION, os.environ.get("FIRSTS"), os.environ.get("SECONDS"), os.path.exists("firsts.txt")]]
"""
PROGRAM = """
import json, os, sys
sys.path.insert(0, {folder!r})
import ray, safe_refs, things
from tests.support.cluster import LOCAL_RAY
from tests.support.processes import run_python
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with different modules of one name; the first has a file, too."""
    first, second = tmp_path / "first", tmp_path / "second"
    for version, folder in enumerate((first, second), 1):
        folder.mkdir()
        (folder / "things.py").write_text(MODULE.format(version=version))
    (first / "firsts.txt").touch()
    return first, second


@pytest.mark.long
def test_a_second_jobs_copies_have_nothing_of_the_first_job(folders: tuple[Path, Path]) -> None:
    """Each job has a module `things` and variables of its own: an object with others inside is copied with the asker's alone."""
    first, second = folders
    asks = (
        PROGRAM.format(folder=str(second))
        + f"""
ray.init(address=sys.argv[1], log_to_driver=False, runtime_env={{
    "py_modules": [{str(second)!r}], "env_vars": {{"SECONDS": "yes"}}}})
payload = safe_refs.dumps([ray.put(things.Thing(ray.put(1))), ray.put(things.Thing(2))], durable=True)
around, alone = [ray.get(ref) for ref in safe_refs.loads(payload)]
print(json.dumps([around.seen[:-1], ray.get(around.inside[0]), alone.seen[:-1]]))
"""
    )
    code = (
        PROGRAM.format(folder=str(first))
        + f"""
import textwrap
ray.init(**LOCAL_RAY, runtime_env={{"working_dir": {str(first)!r}, "env_vars": {{"FIRSTS": "yes"}}}})
own = safe_refs.dumps(ray.put(things.Thing(ray.put(1))), durable=True)
of_first = ray.get(safe_refs.loads(own)).seen[:-1]
of_second = run_python({asks!r}, ray.get_runtime_context().gcs_address)
print(json.dumps([of_first, of_second]))
"""
    )
    of_first, of_second = run_python(code, timeout=180)
    assert of_first
    assert all(seen == [1, "yes", None, True] for seen in of_first)
    around, inside, alone = of_second
    assert (inside, alone) == (1, [])  # the one without references inside was unpickled by nobody
    assert around
    assert all(seen == [2, "", "yes", False] for seen in around)


@pytest.mark.long
def test_drivers_in_different_folders_copy_their_own_classes(folders: tuple[Path, Path]) -> None:
    """Without any runtime environment: a second driver's module is that in its own folder, though the first has one of that name."""
    first, second = folders
    again = "payload = safe_refs.dumps(ray.put(things.Thing(ray.put(1))), durable=True)\n"
    seen = "print(json.dumps(ray.get(safe_refs.loads(payload)).seen[:-1]))\n"
    start = "ray.init(address=sys.argv[1], log_to_driver=False)\n"
    for folder in folders:
        (folder / "main.py").write_text(PROGRAM.format(folder=str(folder)) + start + again + seen)
    code = f"""
import json, os, subprocess, sys
import ray, safe_refs
from tests.support.cluster import LOCAL_RAY
ray.init(**LOCAL_RAY)
found = []
for folder in {[str(first), str(second)]!r}:
    command = [sys.executable, folder + "/main.py", ray.get_runtime_context().gcs_address]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found.append(json.loads(done.stdout.splitlines()[-1]))
print(json.dumps(found))
"""
    of_first, of_second = run_python(code, timeout=180)
    assert of_first
    assert of_second
    assert {seen[0] for seen in of_first} == {1}
    assert {seen[0] for seen in of_second} == {2}


class Secret:
    """Can't be unpickled but where the test says so."""

    def __setstate__(self, state: dict[str, int]) -> None:
        import os

        assert os.environ.get("PYTEST_CURRENT_TEST"), "a copying task has unpickled it"
        self.__dict__ = state


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("size", [1, 300_000])
def test_an_object_without_references_is_copied_unopened(size: int) -> None:
    """Small or large, put or returned by a task, pending or there: its classes need not be importable where it is copied."""
    secret = Secret()
    secret.number = size  # type: ignore[attr-defined] # it has no class of its own for that

    @ray.remote(num_cpus=0)
    def make(size: int) -> tuple[Secret, bytes]:
        made = Secret()
        made.__dict__["number"] = size
        return made, b"x" * size

    values = [secret, b"bytes" * size, b"", None, "text" * size, [{"n": n} for n in range(min(size, 1000))]]
    payload = safe_refs.dumps([[ray.put(value) for value in values], make.remote(size)], durable=True)
    puts, returned = safe_refs.loads(payload)
    assert [got(ref) for ref in puts[1:]] == values[1:]
    assert got(puts[0]).number == size
    made, rest = got(returned)
    assert (made.number, rest) == (size, b"x" * size)
    safe_refs.release(payload)


@pytest.mark.usefixtures("cluster")
def test_what_cannot_be_copied_unopened_is_copied_by_value() -> None:
    """References or handles inside, and errors of tasks: `raw.stored` leaves these to the other way."""

    @ray.remote(num_cpus=0)
    def look(refs: list[Any]) -> list[bool]:
        return [raw.stored(ref, 10) is None for ref in refs]

    @ray.remote(num_cpus=0, max_retries=0)
    def fails() -> None:
        raise KeyError("the task's own")

    class Plain:
        pass

    actor = ray.remote(num_cpus=0)(Plain).remote()
    refs: list[Any] = [ray.put({"a": ray.put(1)}), ray.put([actor]), fails.remote(), ray.put({"a": 1})]
    assert got(look.remote(refs)) == [True, True, True, False]


def test_the_surroundings_that_are_overridden() -> None:
    """Keys become null, variables what the node has, and those that are wanted stay; what is overridden already isn't again."""
    from safe_refs._ray.environments import instead_of

    mine = {"working_dir": "gcs://one.zip", "pip": None, "env_vars": {"A": "1", "b": "2", "RAY_X": "3", "C": "${C}"}}
    assert instead_of(mine, {}) == {"working_dir": None, "env_vars": {"A": "${A}", "b": ""}}
    wanted = {"py_modules": ["gcs://two.zip"], "env_vars": {"A": "9"}}
    assert instead_of(mine, wanted) == {
        "working_dir": None,
        "py_modules": ["gcs://two.zip"],
        "env_vars": {"b": "", "A": "9"},
    }
    assert instead_of({}, wanted) == wanted
    assert json.dumps(instead_of({"pip": None}, {})) == "{}"
