"""The examples of docs/others.md are run."""

from __future__ import annotations

import pytest

from tests.support.examples import OTHERS, blocks, run_block

pytestmark = pytest.mark.integrations


@pytest.mark.parametrize("code", blocks(OTHERS), ids=["data", "modin", "dask", "serve", "deployment"])
def test_every_example_of_others_runs(cluster: str, code: str) -> None:
    """Each is a program of its own, and leaves nothing behind."""
    run_block(code, cluster)
