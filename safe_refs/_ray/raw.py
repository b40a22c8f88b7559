"""An object's bytes, to be stored again as they are. Nobody unpickles the object, so that its classes need not be importable.

What Ray stores of an object: nine bytes with a length, a msgpack part of that length, and a part with the in-band pickle and the
out-of-band buffers. The references inside are named in the in-band pickle by the functions that make them again (see
`objects.met_inside`). Where none of these functions is named there are none, and the bytes are all that there is to copy.

What always holds: where Ray lacks one of the private calls, or the object is of another kind (a task's error, an actor's handle, one
with references inside), the answer is None, and the object has to be copied by its value.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from .native import core_worker

if TYPE_CHECKING:
    import ray

_MAKERS = (b"_object_ref_deserializer", b"_rdt_ref_deserializer", b"_actor_handle_deserializer")


def stored(ref: ray.ObjectRef[Any], timeout_s: float) -> Any:
    """What a task has to return so that Ray stores the bytes of this object again. None if it is another kind of object (see above).

    Private: `CoreWorker.get_objects`, and the functions and classes of `ray._raylet` that take an object's bytes apart and put them
    together, seen since Ray 2.52. Without them, copies are made by value.

    Raises:
        GetTimeoutError: the object has not come in time.
    """
    import ray

    raylet: Any = ray._raylet  # Ray's types don't know all of it
    try:
        [(data, metadata, *_)] = core_worker().get_objects([ref], int(timeout_s * 1000))
        kind = bytes(metadata).split(b",")[0]
        if data is None or kind not in (b"RAW", b"PYTHON", b"XLANG"):
            return None
        if kind == b"RAW":  # a `bytes`
            found = raylet.RawSerializedObject(bytes(data))
        else:
            in_msgpack, rest = raylet.split_buffer(data)
            pickled = None
            if kind == b"PYTHON":
                in_band, buffers = raylet.unpack_pickle5_buffers(rest)
                in_band = bytes(in_band)
                if any(maker in in_band for maker in _MAKERS):
                    return None
                writer = raylet.Pickle5Writer()
                for buffer in buffers:
                    writer.buffer_callback(pickle.PickleBuffer(buffer))
                pickled = raylet.Pickle5SerializedObject(metadata, in_band, writer, [])
            found = raylet.MessagePackSerializedObject(metadata, bytes(in_msgpack), [], pickled)
        _let_pass(raylet.SerializedObject)
    except (AttributeError, TypeError, ValueError):
        return None
    return found


def _let_pass(kind: type) -> None:
    """Have Ray store what a task of this process returns as it is, if it is of that kind. No value of a user's is of that kind.

    Private: `SerializationContext.serialize`, which makes such an object of each value that a task returns, seen since Ray 2.52.
    """
    import ray

    worker: Any = ray._private.worker.global_worker
    context = worker.get_serialization_context()
    before = context.serialize
    if getattr(before, "lets_pass", None) is kind:
        return

    def serialize(value: Any, *args: Any, **kwargs: Any) -> Any:
        return value if isinstance(value, kind) else before(value, *args, **kwargs)

    serialize.lets_pass = kind  # type: ignore[attr-defined] # a mark on the function
    context.serialize = serialize
