"""What actors of ours, and tasks that copy objects, inherit from the processes that start them: nothing but what is named here.

Ray merges the runtime environment of a task or an actor with that of the process that starts it. A key that is left out is
inherited, and `env_vars` are merged name by name (`OverrideRuntimeEnv` in Ray's `core_worker.cc`). So this module overrides every key
and every variable that this process has:

- A key, such as `working_dir`, `py_modules`, `pip`, `conda` or `container`, becomes null, which Ray's agents take for "not given".
- A variable of `env_vars` becomes what the node itself has. Where it has none: empty, as Ray can't remove a variable.
- A worker's setup hook, which Ray keeps in a variable, becomes empty, so that it does not run.
- A variable that begins with `RAY_` stays: it sets up Ray itself, and some empty ones would keep a worker from starting.

What always holds: where this process has no runtime environment, nothing is overridden, and Ray may use a worker that it has.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import client
from .native import core_worker

_VARIABLES = "env_vars"
_EXPANDS = re.compile(r"[A-Z0-9_]+")  # names for which Ray puts an empty string where the node has no such variable
# The keys that say where a process imports packages from.
_CODE = frozenset(
    (
        "working_dir",
        "py_modules",
        "pip",
        "uv",
        "conda",
        "container",
        "image_uri",
        "py_executable",
        "java_jars",
        "config",
    )
)

_STARTS_S = 20.0  # for a task that starts an actor: a worker may have to start for it

Environment = dict[str, Any]

# What actors of ours inherit from this process nevertheless: these keys, or None for everything.
# Bound: it is one of three values. No lock: it is replaced as a whole, and only ever by one that passes on more.
_passed_on: frozenset[str] | None = frozenset()
_brought_for = ""  # id of the actor that has died of it


def pass_on_all() -> None:
    """This process is an actor of ours: actors that it starts inherit everything from it."""
    global _passed_on
    _passed_on = None


def bring_along(actor: str) -> bool:
    """An actor of ours could not import a package: start the next one with the packages of this process's environment.

    It can't where the nodes don't have the package, and a job brings it along in its `pip`, `working_dir` or `py_modules`.

    Args:
        actor: its id.

    Returns:
        Whether the next one will have more than this one had.
    """
    global _passed_on, _brought_for
    if _passed_on == frozenset() and any(own().get(key) for key in _CODE):
        _passed_on, _brought_for = _CODE, actor
    return _passed_on == _CODE and actor == _brought_for


def own() -> Environment:
    """The runtime environment of this process; of a Ray Client, that of its job.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray

    context = ray.get_runtime_context()
    said: str = client.asked(lambda: context.get_runtime_env_string())  # type: ignore[no-untyped-call] # Ray leaves this one untyped
    found: Environment = json.loads(said)
    return found


def for_actors() -> Environment:
    """The runtime environment of an actor of ours that this process starts; empty if nothing need be overridden."""
    mine = own()
    if _passed_on is None or not mine:
        return {}
    return instead_of(mine, {key: mine[key] for key in _passed_on & mine.keys()})


def instead_of(mine: Mapping[str, Any], wanted: Mapping[str, Any]) -> Environment:
    """The runtime environment for a task that is to have `wanted` alone, if the process that submits it has `mine`."""
    env: Environment = {key: None for key, value in mine.items() if value is not None}
    env |= wanted
    theirs = wanted.get(_VARIABLES) or {}
    variables = {
        name: f"${{{name}}}" if _EXPANDS.fullmatch(name) else ""
        for name, value in (mine.get(_VARIABLES) or {}).items()
        if name not in theirs and not name.startswith("RAY_") and value not in ("", f"${{{name}}}")
    }
    env.pop(_VARIABLES, None)
    if variables or theirs:
        env[_VARIABLES] = variables | theirs
    return env


@functools.cache
def _overriding() -> type[Any]:
    """A subclass of Ray's class for runtime environments that keeps what is null."""
    from ray.runtime_env import RuntimeEnv

    class Overriding(RuntimeEnv):
        def serialize(self) -> str:
            return json.dumps(dict(self), sort_keys=True)

        def py_modules_uris(self) -> list[str]:
            return list(dict.get(self, "py_modules") or ())

    return Overriding


def overriding(env: Environment) -> Any:
    """A runtime environment as an object of such a class."""
    found = _overriding()(_validate=False)
    dict.update(found, env)
    return found


def start(class_: type, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Start an actor of ours in the environment from `for_actors`. Returns its handle, or None if it has to be looked up by its name.

    For a Ray Client a task in the cluster does it, as the client's server would drop what is null.

    Private: `ActorClass._remote` takes a runtime environment as it is and asks it to `serialize` itself, seen since Ray 2.52;
    `options` would drop what is null. Without that, actors of ours would have the environment of the job that starts them.

    Raises:
        ValueError: another process has started it, and it is not listed yet, or no longer. Try again.
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    import ray

    env = for_actors()
    if env and client.server() is not None:
        there: Any = ray.remote(num_cpus=0)(_start_there)
        there = there.options(enable_task_events=False)
        client.asked(lambda: ray.get(there.remote(class_, args, options, _passed_on)), _STARTS_S)
        return None
    more = {"runtime_env": overriding(env)} if env else {}
    remote_class: Any = ray.remote(class_)
    return remote_class._remote(list(args), {}, **options, **more)


def _start_there(class_: type, args: Sequence[Any], options: Mapping[str, Any], passed_on: frozenset[str]) -> None:
    global _passed_on
    _passed_on = passed_on
    start(class_, args, options)


def submit(remote_function: Any, args: Sequence[Any], options: Mapping[str, Any], env: str) -> Any:
    """Submit a task with an environment from `for_task`; its reference, or references. Private: as `start`."""
    more = {"serialized_runtime_env_info": env} if env else {}
    return remote_function._remote(list(args), {}, **options, **more)


def surroundings() -> str:
    """What a task needs to read and write the objects of this process, as JSON: its runtime environment, and its import path.

    Ray adds the folder of a job's driver to the import path of that job's workers. The tasks that copy objects are of another job.

    Raises:
        RegistryUnavailableError: this process is a Ray Client that has lost its server.
    """
    env = own()
    path: list[str] = []
    if client.server() is None:  # a client's folders are on no node, and Ray's workers can import from none of them
        installed = (sys.prefix, sys.base_prefix)
        path = [entry for entry in sys.path if Path(entry).is_absolute() and not entry.startswith(installed)]
    return json.dumps({"env": env, "path": path}, sort_keys=True)


class ForTask(NamedTuple):
    """What a task of this process needs to be like another process.

    Attributes:
        env: its runtime environment, for `submit`; empty if nothing need be overridden.
        without: folders that the task has to take out of its import path, by `leave_out`.
    """

    env: str
    without: list[str]


def for_task(wanted_surroundings: str) -> ForTask:
    """What a task of this process needs to have these surroundings (see `surroundings`), and nothing of this process's job.

    Private: Ray puts the folders of the job's driver (`py_driver_sys_path` of the job's configuration) before all others in the
    import path of the job's workers, seen since Ray 2.52. Without it, a module of the same name could be the wrong one.
    """
    said = json.loads(wanted_surroundings)
    wanted: Environment = said["env"]
    without = [entry for entry in core_worker().get_job_config().py_driver_sys_path if entry not in said["path"]]
    more = [entry for entry in said["path"] if entry not in sys.path]
    if more or without:
        variables = wanted.get(_VARIABLES) or {}
        before = variables.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
        # Added behind the `PYTHONPATH` that is there. As the environment differs, Ray takes other workers for this task than for
        # tasks without it. That is needed: those may have imported other modules of the same names.
        wanted = {**wanted, _VARIABLES: {**variables, "PYTHONPATH": os.pathsep.join([*filter(None, [before]), *more])}}
    mine = own()
    env = {} if mine == wanted else instead_of(mine, wanted)
    return ForTask(_info(env) if env else "", without)


def _info(env: Environment) -> str:
    """A runtime environment in the form that Ray's core worker takes.

    Private: `ray._private.utils.get_runtime_env_info`, seen since Ray 2.52. Without it, copies would be made with the environment of
    the job that started the registry.
    """
    from ray._private.utils import get_runtime_env_info

    found: str = get_runtime_env_info(overriding(env), is_job_runtime_env=False, serialize=True)
    return found


def leave_out(folders: Sequence[str]) -> None:
    """In such a task: no longer import from these folders."""
    sys.path[:] = [entry for entry in sys.path if entry not in folders]
