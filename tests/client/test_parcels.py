"""Picklers inside picklers in a Ray Client: what an object pickles by itself, and parcels in what Ray serializes for its server."""

from __future__ import annotations

import pytest

import safe_refs
from tests.support.clients import Client


@pytest.mark.long
def test_picklers_inside_picklers_in_a_client(client: Client, cluster: str) -> None:
    """References pickled inside belong to the lease; those around a parcel go to the task, or into the store, as always."""
    assert cluster
    seen = client(
        """
        from tests.support.parcels import *
        seen = {}
        for pickler in PICKLERS[:3]:
            payload = safe_refs.dumps([State([ray.put("in")], pickler), Kept(ray.put("kept"), pickler)], ttl=60)
            state, kept = safe_refs.loads(payload)
            seen[pickler] = [safe_refs.inspect(payload).kinds, values(state), values(kept.opened())]
            safe_refs.release(payload)
            del state, kept
        def box():
            return [ray.put("before"), Parcel([ray.put("in"), Parcel(ray.put("deep"))]), ray.put("behind")]
        seen["argument"] = ray.get(read.remote(box()), timeout=40)
        seen["put"] = values(ray.put(box()))
        print(json.dumps(seen))
        """
    )
    came = ["before", ["in", "deep"], "behind"]
    inner = {pickler: ["oo", ["in"], "kept"] for pickler in ("pickle", "cloudpickle", "ray.cloudpickle")}
    assert seen == {**inner, "argument": came, "put": came}
    safe_refs.shutdown(force=True)  # what was loaded and not released ends a little after the client's server
