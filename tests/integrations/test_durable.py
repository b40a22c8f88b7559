"""What others build on Ray, made durable: it outlives the job that made it."""

from __future__ import annotations

import pytest

from tests.integrations.libraries import DASK, DATA, MODIN
from tests.support.processes import Driver

pytestmark = pytest.mark.integrations

THINGS = {
    "dataset": (
        DATA,
        'ray.data.range(20_000, override_num_blocks=4).map_batches(lambda rows: {"n": rows["id"] * 2}).materialize()',
        'sum(row["n"] for row in thing.take_all())',
        399_980_000,
    ),
    "dask": (
        DASK,
        "(dask.array.arange(20_000, chunks=5_000) * 2).persist()",
        "int(thing.sum().compute())",
        399_980_000,
    ),
    "modin": (MODIN, 'pd.DataFrame({"n": range(20_000)}) * 2', 'int(thing["n"].sum())', 399_980_000),
}


@pytest.mark.parametrize("kind", THINGS)
def test_it_outlives_the_job_that_made_it(cluster: str, driver: Driver, kind: str) -> None:
    """The maker's job is over, with all that it owned, when another one reads what it made."""
    libraries, make, use, right = THINGS[kind]
    payload = driver(libraries + f"print(json.dumps(safe_refs.dumps({make}, durable=True).hex()))", timeout=150)
    found = driver(
        libraries
        + f"""
payload = bytes.fromhex(args[0])
thing = safe_refs.loads(payload)
found = {use}
del thing
print(json.dumps([found, safe_refs.release(payload)]))
""",
        payload,
        timeout=150,
    )
    assert found == [right, 1]
