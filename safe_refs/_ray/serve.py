"""Ray Serve: the reference behind a deployment's response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedReferenceError

if TYPE_CHECKING:
    import ray


def ref_of_response(response: Any, timeout_s: float) -> ray.ObjectRef[Any]:
    """The reference to the result of a Serve `DeploymentResponse`, as soon as a replica has the request.

    Semi-public: `DeploymentResponse._to_object_ref_sync`, which Ray calls a developer API, seen since Ray 2.52. Without it, a
    response would be refused, as Serve refuses to pickle it.

    Raises:
        UnsupportedReferenceError: there is no reference to be had here. Either an event loop is running, which must not wait, or the
            handle passes values and not references.
        TimeoutError: no replica took the request in time.
        Exception: what Serve raises for a request that was cancelled or rejected.
    """
    try:
        ref: ray.ObjectRef[Any] = response._to_object_ref_sync(_timeout_s=timeout_s)
    except RuntimeError as error:  # Serve says why, and what to do
        name = "ray.serve.handle.DeploymentResponse"
        what = f"a {name}, whose reference can't be had here ({error})"
        remedy = "in an event loop, `await response` for its value, or pickle in a thread, as aio.dumps_many does"
        raise UnsupportedReferenceError.of(response, what, remedy, kind=name) from error
    return ref
