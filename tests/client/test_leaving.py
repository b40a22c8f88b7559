"""A Ray Client that leaves in the middle of everything."""

from __future__ import annotations

import pytest

from tests.interrupts.programs import run
from tests.support.processes import Driver


@pytest.mark.long
def test_a_client_that_leaves_at_random_moments(cluster: str, port: int) -> None:
    """Calls of every kind are under way: no Ray starts, each call ends in time, no thread stays, and the next connection works."""
    found = run("leaving", f"ray://127.0.0.1:{port}", "6", "1", timeout=160)
    assert (found["started"], found["hung"], found["failed"]) == ([], [], [])
    assert found["is_worth"]


def test_a_call_that_begins_when_the_client_has_left(driver: Driver, port: int) -> None:
    """Whatever Ray Client raises then, it is the named error; with another connection by then, it is Ray's own."""
    found = driver(
        """
        from safe_refs._ray import client

        def fails():
            raise Exception("Ray Client is not connected")

        def heard():
            try:
                client.in_time(fails, 5)
            except Exception as error:
                return type(error).__name__

        ray.shutdown()
        ray.init(args[0], log_to_driver=False, logging_level="critical")
        safe_refs.release(safe_refs.dumps(ray.put(1)))
        connected = heard()
        ray.shutdown()
        left = heard()
        ray.init(address, log_to_driver=False, logging_level="critical")
        print(json.dumps([connected, left, heard()]))
        """,
        f"ray://127.0.0.1:{port}",
    )
    assert found == ["Exception", "RegistryUnavailableError", "Exception"]
