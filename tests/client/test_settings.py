"""A Ray Client is a driver: what `init` says there holds for its tasks."""

from __future__ import annotations

import pytest

from tests.support.clients import Client


@pytest.mark.long
def test_what_init_says_in_a_client_holds_for_its_tasks(client: Client, cluster: str) -> None:
    """Also for those that have used safe_refs before; and `settings` says who said so."""
    seen = client(
        """
        @ray.remote(num_cpus=0)
        class Maker:
            def make(self):
                payload = safe_refs.dumps(ray.put(1))
                info = safe_refs.inspect(payload)
                safe_refs.release(payload)
                return info.registry, info.terms.get("ttl"), safe_refs.settings().sources["ttl"]

        maker = Maker.remote()
        seen = [ray.get(maker.make.remote())]
        for ttl in (60, 90):
            safe_refs.init("of-a-client", ttl=ttl)
            seen += [ray.get(maker.make.remote()), [safe_refs.settings().ttl_s, safe_refs.settings().sources["ttl"]]]
        safe_refs.shutdown()
        print(json.dumps(seen))
        """
    )
    first, *rest = seen
    assert first == ["default", None, "default"]
    assert rest == [["of-a-client", 60, "job"], [60, "init"], ["of-a-client", 90, "job"], [90, "init"]]
