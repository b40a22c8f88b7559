"""The benchmark of shards and replicas, in a short form: its figures are there, and they are sane."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import ROOT


@pytest.mark.long
def test_the_figures_of_scaling_are_there_and_sane(tmp_path: Path) -> None:
    """A few of each: costs grow with references and less than in proportion, nothing fails in a rebuild or a growth, none is lost."""
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.scaling", "--json", str(out)]
    few = ["--leases", "300", "--rounds", "20", "--seconds", "0.3", "--references", "100"]
    # Its status tells of the target, which so short a run can't judge on a machine with others on it.
    done = subprocess.run([*command, *few], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert out.exists(), done.stderr[-3000:]
    figures = json.loads(out.read_text())
    assert set(figures) == {"machine", "replicas", "costs", "throughput", "changes"}
    dumps, loads = figures["replicas"]
    assert 0.5 < loads["ratio"] < 3, done.stdout
    assert 0.5 < dumps["ratio"] < 3, done.stdout
    costs = {cost["references"]: cost for cost in figures["costs"]}
    assert list(costs) == [1, 10, 100, 1000]
    assert costs[1]["pin_us"] < costs[1000]["pin_us"] < 500 * costs[1]["pin_us"], done.stdout
    assert [each["shards"] for each in figures["throughput"]] == [1, 2, 4]
    assert all(each["leases_per_s"] > 10 for each in figures["throughput"]), done.stdout
    assert [(change["leases"], change["failed"]) for change in figures["changes"]] == [(300, 0), (300, 0)]
    assert all(0 < change["longest_ms"] < 10_000 for change in figures["changes"]), done.stdout
