"""The watch over the tests: it would notice what a test leaves behind."""

from __future__ import annotations

import pytest
import ray

import safe_refs
from safe_refs._ray import store
from tests.support.store import check_nothing_left
from tests.support.values import MB


def test_the_watch_over_tests_notices_a_lease_and_a_pinned_byte(cluster: str) -> None:
    """The fixture that all tests here rely on does fail a test that leaves something behind."""
    before = store.store_usage()
    payload = safe_refs.dumps(ray.put(1))
    with pytest.raises(AssertionError, match=r"left 1 lease\(s\) behind"):
        check_nothing_left(before)
    assert safe_refs.release(payload) == 0  # the watch has cleared it away
    kept = ray.put(b"x" * MB)
    with pytest.raises(AssertionError, match="bytes pinned"):
        check_nothing_left(before, settle_s=0.5)
    del kept
