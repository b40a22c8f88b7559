"""`python -m tests.interrupts --seconds 600 --seed 1`: the soak of random signals, in a Ray of its own; its figures.

Exit status 1 says that something hung, failed, or was left held.
"""

from __future__ import annotations

import argparse
import sys

import ray

import tests.support.environment  # noqa: F401 # Ray reads the environment
from tests.support.cluster import LOCAL_RAY

from .programs import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interrupts")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ray.init(**LOCAL_RAY)
    address = ray.get_runtime_context().gcs_address
    found = run("soak", address, str(options.seconds), str(options.seed), timeout=options.seconds + 180)
    ray.shutdown()
    for name, figure in found.items():
        print(f"{name:10} {len(figure) if isinstance(figure, list) else figure}")
    for each in (*found["hung"], *found["failed"]):
        print(each)
    return 1 if found["hung"] or found["failed"] or found["left"] or not found["is_worth"] else 0


if __name__ == "__main__":
    sys.exit(main())
