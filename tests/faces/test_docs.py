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

# Each takes some seconds; those of the pages that are read first run each time.
FIRST = ("README.md",)
BLOCKS = [
    pytest.param(code, id=f"{page.name}-{number}", marks=[] if page.name in FIRST else [pytest.mark.long])
    for page in PAGES
    if page != OTHERS
    for number, code in enumerate(blocks(page))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_runs(cluster: str, code: str) -> None:
    """Each block runs as it stands, in another job of the tests' Ray."""
    run_block(code, cluster)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name, marks=[] if path.name == "queue_consumer.py" else [pytest.mark.long])
        for path in sorted((ROOT / "examples").glob("*.py"))
    ],
)
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


def _rows(page: str, start: str = "") -> list[list[str]]:
    """The rows of the tables of a page, or of the one whose heading starts so, without the headings."""
    text = (ROOT / "docs" / page).read_text()
    lines = (text[text.index(start) :].split("\n\n")[0] if start else text).splitlines()
    rows = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if not after.startswith("|---")]
    return [line.split("|")[1:-1] for line in rows if line.startswith("|") and not line.startswith("|---")]


def test_each_row_of_dropin_is_shown_by_a_test() -> None:
    """docs/shown.md names a test for each row of its tables, and the test exists."""
    tests = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    shown = {row[0].strip(): row[1].strip() for row in _rows("shown.md")}
    situations = [row[0].strip() for row in _rows("dropin.md")]
    deaths = [row[0].strip() for row in _rows("deaths.md", "| who dies")]
    assert len(situations) > 15
    assert len(deaths) > 15
    assert set(situations) | set(deaths) <= set(shown), (set(situations) | set(deaths)) - set(shown)
    for situation, named in shown.items():
        names = re.findall(r"`(test_\w+)…?`", named)
        assert names or named == "—", situation
        for name in names:
            assert any(each.startswith(name) for each in tests), (situation, name)


def test_pages_for_users_name_no_tests() -> None:
    """Those are in the appendix."""
    for page in PAGES:
        if page.name not in (
            "shown.md",
            "architecture.md",
            "chaos.md",
            "format.md",
            "CHANGELOG.md",
        ) and "benchmarks" not in str(page):
            assert "test_" not in page.read_text(), page.name
