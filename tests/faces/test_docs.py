"""Everything that the README and docs show is run, and every local link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import ROOT
from tests.support.examples import OTHERS, PAGES, blocks, run_block

BLOCKS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    if page != OTHERS
    for number, code in enumerate(blocks(page))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_runs(cluster: str, code: str) -> None:
    """Each block runs as it stands, in another job of the tests' Ray."""
    run_block(code, cluster)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_runs_and_ends_with_nothing_held(path: Path) -> None:
    """With a Ray of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "held now: []"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    """Files that a page points to exist."""
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link
