"""Modin on Ray: frames go from job to job, without their data."""

from __future__ import annotations

import pytest

from tests.integrations.jobs import HandOver
from tests.integrations.libraries import MODIN
from tests.support.processes import Driver

pytestmark = pytest.mark.integrations


def test_a_frame_goes_to_another_job(cluster: str, hand_over: HandOver) -> None:
    """A frame and a series come back as Modin's own, and compute there; also in a task, although Modin itself would give pandas'."""
    found = hand_over(
        MODIN
        + """
from modin.utils import execute

def done(thing):
    # Step by step, as Modin lets go of parts of what a chain of computations returns while that is under way; see `hand_over`.
    execute(thing)
    return thing

def make():
    frame = pd.DataFrame({"a": np.arange(200_000), "b": np.arange(200_000) * 2.0})
    frame["c"] = done(done(frame["a"]) + 1)
    done(frame)
    return {"frame": frame, "series": done(frame["b"]), "unnamed": done(done(frame["a"]) + done(frame["c"]))}

def finish(things):
    pass
""",
        MODIN
        + """
@ray.remote
def in_task(payload):
    frame = safe_refs.loads(payload)["frame"]
    return [type(frame).__module__, int((frame["a"] + 1).sum())]

def use(things):
    frame, series, unnamed = things.values()
    frame["d"] = frame["a"] * 2
    return [
        len(payload), [type(thing).__module__ for thing in (frame, series, unnamed)], [series.name, unnamed.name],
        [int(frame[name].sum()) for name in "abcd"], int(series.max()), int(unnamed.max()),
        ray.get(in_task.remote(payload), timeout=60),
    ]
""",
        size=3 * 200_000 * 8,
        left=100_000,  # functions that Modin put into the store
    )
    payload_bytes, modules, names, sums, largest, unnamed, in_task = found
    assert payload_bytes < 10_000
    assert modules == ["modin.pandas.dataframe", "modin.pandas.series", "modin.pandas.series"]
    assert names == ["b", None]
    assert sums == [19_999_900_000, 39_999_800_000, 20_000_100_000, 39_999_800_000]
    assert (largest, unnamed) == (399_998, 399_999)
    assert in_task == ["modin.pandas.dataframe", 20_000_100_000]


def test_what_of_modin_is_carried_otherwise(cluster: str, driver: Driver) -> None:
    """What is inside Modin's other objects is refused by name. Frames that are empty, or that Modin is told to copy, are copied.

    Other picklers get what Modin gives them, and handles can stand in for references.
    """
    found = driver(
        MODIN
        + """
frame = pd.DataFrame({"a": np.arange(1000)}) + 1
try:
    safe_refs.dumps(frame.groupby("a"))
except safe_refs.UnsupportedReferenceError as error:
    refused = error.kind
with modin.config.context(PersistentPickle=True):
    copied = safe_refs.dumps(frame)
empty = safe_refs.dumps([frame[frame["a"] < 0], pd.DataFrame(), pd.Series()])
payload = safe_refs.dumps([frame, frame["a"]])
copy = pickle.loads(pickle.dumps(frame))
handles = safe_refs.loads(payload, resolve=False)
print(json.dumps([
    refused, [safe_refs.inspect(data).lease_id is None for data in (copied, empty, payload)],
    [type(thing).__name__ for thing in [*safe_refs.loads(empty), *handles]], [len(thing) for thing in safe_refs.loads(empty)],
    type(copy).__module__, int(copy["a"].sum()), safe_refs.release(payload),
]))
"""
    )
    refused, without_lease, *others = found
    assert refused.endswith("PandasOnRayDataframePartition")
    assert without_lease == [True, True, False]
    kinds = ["DataFrame", "DataFrame", "Series", "DataFrame", "Series"]
    assert others == [kinds, [0, 0, 0], "modin.pandas.dataframe", 500_500, 1]


def test_labels_of_all_kinds_come_back(cluster: str, driver: Driver) -> None:
    """Index, columns, dtypes and names are the same afterwards, whatever pandas allows there."""
    differing = driver(
        MODIN
        + """
import pandas
n = np.arange(100)
frame = pd.DataFrame({"a": n, "b": pd.Categorical(n % 3), "c": n.astype(str), "d": pd.to_datetime(n)})
things = {
    "plain": frame,
    "filtered": frame[frame["a"] % 7 == 0],
    "named index": frame.set_index("c"),
    "two levels": frame.set_index(["a", "c"]),
    "columns of two levels": pd.DataFrame(np.ones((50, 4)), columns=pandas.MultiIndex.from_product([["x", "y"], [1, 2]])),
    "renamed": frame.rename(columns={"a": "z"}),
    "turned": frame[["a"]].T,
    "sorted": frame.sort_values("a", ascending=False),
    "wide": pd.DataFrame(np.ones((10, 200))),
    "series": frame["b"],
    "series, unnamed": frame["a"] + frame["a"].rename("other"),
    "series, named by a number": frame["a"].rename(7),
    "series, named by a tuple": frame["a"].rename(("x", 1)),
}
payload = safe_refs.dumps(things)
differing = {}
for name, thing in safe_refs.loads(payload).items():
    compare = pandas.testing.assert_frame_equal if thing.ndim == 2 else pandas.testing.assert_series_equal
    try:
        assert type(thing) is type(things[name])
        compare(pd.io.to_pandas(thing), pd.io.to_pandas(things[name]))
        compare(pd.io.to_pandas(thing.head(5)), pd.io.to_pandas(things[name].head(5)))
    except AssertionError as error:
        differing[name] = str(error)
safe_refs.release(payload)
print(json.dumps(differing))
"""
    )
    assert differing == {}
