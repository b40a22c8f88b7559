"""What Ray reads from the environment, in the tests and in every process that they start. Import it before anything imports Ray."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

os.environ["RAY_allow_out_of_band_object_ref_serialization"] = "0"  # noqa: SIM112 # the name is Ray's
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Without this Ray replaces a loopback address by the machine's own, and listens to the network.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"
# Ray gathers what may be freed for a second, for which nearly every test would wait.
os.environ["RAY_free_objects_period_milliseconds"] = "50"  # noqa: SIM112 # the name is Ray's
# What a job's processes have read of its settings they read again so often; an `init` that changes them waits that long.
os.environ["SAFE_REFS_TESTS_FRESH_S"] = "0.1"
# Ray's workers import what tests pickle by reference from where the tests import it.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
