"""What the objects of other libraries are pickled as, where the library's own way gives away a copy, or fails.

Most need nothing from us: a materialized Ray Data `Dataset` and a persisted Dask collection are plain objects with references in
them, which are found wherever they stand. Here are the others. Once somebody has imported the library, `kinds` registers what these
functions give. It acts only while safe_refs is pickling. docs/others.md has the user's side.

What always holds: no library is imported that isn't in use here already; no payload names anything of this file; what can't be
carried is refused by name.
"""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from . import _settings
from ._ray.serve import ref_of_response

# What a reducer of pickle's returns, or an `ObjectRef` to stand in the object's place.
Reduce = Callable[[Any], Any]


class Refused(NamedTuple):
    """What can't be carried: its type, and what to do instead."""

    what: str
    remedy: str


Reducers = dict[type, Reduce | Refused]

SERVE = "ray.serve.handle"
MODIN = "modin.core.execution.ray.implementations.pandas_on_ray.partitioning.partition"


def of_serve() -> Reducers | None:
    """Ray Serve: a response is pickled as the reference of its result, which is what Serve makes of it for another deployment.

    Returns:
        For each class, how it is pickled, or that it is refused; None while the library is still being imported.
    """
    library = sys.modules[SERVE]
    if not hasattr(library, "DeploymentHandle"):  # the last class of the module
        return None
    reducers: Reducers = {
        library.DeploymentResponse: lambda response: ref_of_response(response, _settings.timeout_s()),
        library.DeploymentResponseGenerator: Refused(
            f"{SERVE}.DeploymentResponseGenerator", "iterate over it, and pass its values on"
        ),
    }
    if hasattr(library, "DeploymentBroadcastResponse"):  # younger than the oldest Ray that we support
        reducers[library.DeploymentBroadcastResponse] = Refused(
            f"{SERVE}.DeploymentBroadcastResponse", "pass on what its results() gives, or `await` its results_async()"
        )
    return reducers


def of_modin() -> Reducers | None:
    """Modin on Ray: a frame is pickled as the references of its partitions, by Modin's public functions for them.

    Modin's own pickles make a pandas frame in every process but the one that they come from: all of the data is fetched while they
    are opened. And what is inside them is not made for another process: the first one that is opened there fails ("NoneType object is
    not callable"), as a partition that was unpickled lacks what its constructor prepares.

    Returns:
        As `of_serve`.
    """
    partition = getattr(sys.modules[MODIN], "PandasOnRayDataframePartition", None)
    pandas: Any = sys.modules.get("modin.pandas")
    if partition is None or not (hasattr(pandas, "DataFrame") and hasattr(pandas, "Series")):
        return None
    return {
        pandas.DataFrame: lambda frame: _reduce_modin(frame, frame.columns),
        pandas.Series: _reduce_modin_series,
        partition: Refused(f"{MODIN}.{partition.__name__}", "it is inside of something of Modin's; pickle the frame"),
    }


def _reduce_modin(frame: Any, columns: Any) -> Any:
    """A frame, or a series as a frame; in Modin's own way where the user set PersistentPickle or another backend."""
    if importlib.import_module("modin.config").PersistentPickle.get() or frame.get_backend() != "Ray":
        return frame.__reduce_ex__(4)
    if frame.size == 0:  # there may be no partition
        return type(frame), (importlib.import_module("modin.pandas.io").to_pandas(frame),)
    partitions = importlib.import_module("modin.distributed.dataframe.pandas")
    # Index and columns go along, as they would be fetched while the frame is opened, which may take long.
    return partitions.from_partitions, (partitions.unwrap_partitions(frame), None, frame.index, columns)


def _reduce_modin_series(series: Any) -> Any:
    name = importlib.import_module("modin.utils").MODIN_UNNAMED_SERIES_LABEL if series.name is None else series.name
    reduced = _reduce_modin(series, importlib.import_module("pandas").Index([name], tupleize_cols=False))
    if reduced[0].__name__ != "from_partitions":
        return reduced
    # Not frame.squeeze(), which asks the partitions whether they are empty.
    compiler = _Reduced((operator.attrgetter("_query_compiler"), (_Reduced(reduced),)))
    kind: Any = type(series)
    return functools.partial(kind, query_compiler=compiler), ()


class _Reduced:
    """Is pickled as something that has been reduced already."""

    def __init__(self, reduced: Any) -> None:
        self._reduced = reduced

    def __reduce__(self) -> Any:
        return self._reduced
