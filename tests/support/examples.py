"""The pages of the project, and the examples on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .environment import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
# What needs other libraries: its examples are run by `make test-integrations`.
OTHERS = ROOT / "docs" / "others.md"


def blocks(page: Path) -> list[str]:
    """The examples on a page: each is a program of its own."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def run_block(code: str, cluster: str) -> None:
    """Run an example as it stands, in another job of the tests' Ray."""
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
