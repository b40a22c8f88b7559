"""The one room that touches Ray's private API, and what safe_refs wants of Ray beyond its everyday calls.

| file | what is in it |
|---|---|
| `workers` | this process and its connection; who owns what; who is dead |
| `cluster` | nodes, control store, starting actors of ours |
| `objects` | values, sizes, places, and what a task needs to read them |
| `actors` | handles of actors |
| `counts` | Ray's reference counts, and how to make this process report to an owner |
| `exits` | how this process learns that it is about to end |
| `client` | what differs in a Ray Client |
| `serve`, `store` | Serve's responses; figures of the object stores |
| `native` | what the others share: Ray's core worker and its control service |

Each function that goes beyond Ray's public API says why, since which Ray it has been seen to work, and what happens without it.
tests/test_ray_facts.py tries each with the Ray at hand, and `make test-oldest` with the oldest that we support.

What always holds: nothing here imports Ray before somebody else has. No reference can exist until then.
"""

# ---- Transition: the old names of what is in this package. It goes when no caller needs it. ----
# New callers import names from the files (`from .._ray.objects import get`), and not the files from the package: until this block
# goes, `_ray.actors` and `_ray.objects` are the old functions.
from .actors import id_of, interned, is_actor_handle, is_mortal, is_weak, known_actors, only_actors, only_objects
from .cluster import (
    NAMESPACE,
    count_up,
    kv_delete,
    kv_get,
    kv_put,
    methods_known,
    named_actor,
    nodes,
    start_actor,
)
from .counts import Touch as Told
from .counts import can_anchor, counted, let_go_of_actor, references, still_counted, touch_zero, touchable
from .exits import call_before_exit
from .exits import is_ending as is_told_to_end
from .objects import (
    UnopenedActorError,
    fetch,
    get,
    met_inside,
    nodes_of,
    owner_answers,
    put,
    runtime_env_for,
    sizes,
    surroundings,
    transport_of,
    value,
    wait,
)
from .serve import ref_of_response
from .store import StoreUsage, store_usage, wait_for_store
from .workers import (
    Connection,
    borrowed,
    connection,
    describe,
    is_actor,
    is_alone,
    is_surely_dead,
    node_and_process,
    own_address,
    owner_of,
    ownerless,
    owns_all,
)

actors, objects = only_actors, only_objects

__all__ = [
    "NAMESPACE",
    "Connection",
    "StoreUsage",
    "Told",
    "UnopenedActorError",
    "actors",
    "borrowed",
    "call_before_exit",
    "can_anchor",
    "connection",
    "count_up",
    "counted",
    "describe",
    "fetch",
    "get",
    "id_of",
    "interned",
    "is_actor",
    "is_actor_handle",
    "is_alone",
    "is_mortal",
    "is_surely_dead",
    "is_told_to_end",
    "is_weak",
    "known_actors",
    "kv_delete",
    "kv_get",
    "kv_put",
    "let_go_of_actor",
    "met_inside",
    "methods_known",
    "named_actor",
    "node_and_process",
    "nodes",
    "nodes_of",
    "objects",
    "own_address",
    "owner_answers",
    "owner_of",
    "ownerless",
    "owns_all",
    "put",
    "ref_of_response",
    "references",
    "runtime_env_for",
    "sizes",
    "start_actor",
    "still_counted",
    "store_usage",
    "surroundings",
    "touch_zero",
    "touchable",
    "transport_of",
    "value",
    "wait",
    "wait_for_store",
]
# ---- End of the transition. ----
