"""Settings, and where they come from."""

from __future__ import annotations

import pytest

import safe_refs
from safe_refs import config


def test_settings_come_from_init_the_environment_and_the_call_in_rising_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As documented; and a value that makes no sense is refused with its name."""
    monkeypatch.setattr(config._given, "registry", "from-init")
    assert config.registry_name() == "from-init"
    monkeypatch.setenv("SAFE_REFS_REGISTRY", "from-environment")
    assert config.registry_name() == "from-environment"
    assert config.registry_name("from-call") == "from-call"
    monkeypatch.setattr(config._given, "timeout", 3.0)
    assert config.timeout_s() == 3
    monkeypatch.setenv("SAFE_REFS_TIMEOUT", "4")
    assert config.timeout_s() == 4
    assert config.timeout_s(5) == 5
    for wrong in ("soon", "-1", "0"):
        monkeypatch.setenv("SAFE_REFS_TIMEOUT", wrong)
        with pytest.raises(ValueError, match="SAFE_REFS_TIMEOUT must be"):
            config.timeout_s()
    with pytest.raises(ValueError, match="max_leases must be at least 1"):
        safe_refs.init(max_leases=0)
