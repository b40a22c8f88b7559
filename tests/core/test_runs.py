"""Runs of a script: what one has written is another's own, as with plain pickle, in another process or in the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import run_python


@pytest.mark.parametrize("edited", [False, True])
def test_another_run_of_the_same_script_opens_its_own_classes(tmp_path: Path, edited: bool) -> None:
    """As with plain pickle; once the script has been changed, what was written brings its own classes along."""
    code = """
        import enum, json, pathlib, sys, safe_refs
        class Kind(enum.Enum):
            BIG = 2
        class Item:
            def __init__(self): self.kind = Kind.BIG
        path = pathlib.Path(sys.argv[1])
        if path.exists():
            item = safe_refs.loads(path.read_bytes())
            print(json.dumps([type(item) is Item, item.kind is Kind.BIG, item.kind.value]))
        else:
            path.write_bytes(safe_refs.dumps(Item()))
        """
    script, data = tmp_path / "script.py", str(tmp_path / "data")
    run_python(code, data, script=script)
    found = run_python(code + "# edited\n" if edited else code, data, script=script)
    assert found == ([False, False, 2] if edited else [True, True, 2])


def test_a_name_that_means_something_else_by_now(tmp_path: Path) -> None:
    """What was written is what is opened, whatever its name stands for then, in the process that wrote it and in another run."""
    code = """
        import gc, json, pathlib, sys, safe_refs
        path = pathlib.Path(sys.argv[1])
        if path.exists():
            Item, helper = 5, [1]
            item, call = safe_refs.loads(path.read_bytes())
            print(json.dumps([type(item).__name__, call()]))
        else:
            written = []
            for number in (0, 10):
                class Item:
                    value = number
                def helper(value=number): return value
                written.append(safe_refs.dumps([Item(), helper]))
            del Item, helper
            Item, helper = 5, [1]
            gc.collect()
            opened = [safe_refs.loads(each) for each in written]
            path.write_bytes(written[1])
            print(json.dumps([[item.value, call()] for item, call in opened]))
        """
    script, data = tmp_path / "script.py", str(tmp_path / "data")
    assert run_python(code, data, script=script) == [[0, 0], [10, 10]]
    assert run_python(code, data, script=script) == ["Item", 10]


def test_what_a_forked_child_writes_is_the_scripts_own(tmp_path: Path) -> None:
    """To its parent and to another child, also what none of them had pickled before; what the parent wrote before, to the child."""
    found = run_python(
        """
        import enum, json, os, safe_refs
        class Kind(enum.Enum):
            BIG = 2
        class Item:
            def __init__(self): self.kind = Kind.BIG
        class Early: pass
        def helper(): pass
        def judged(data):
            item, call, early = safe_refs.loads(data)
            return [type(item) is Item, item.kind is Kind.BIG, call is helper, type(early) is Early]
        def in_child(work):
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.write(writer, work())
                os._exit(0)
            os.wait()
            return os.read(reader, 60_000)
        early = safe_refs.dumps(Early())
        written = in_child(lambda: safe_refs.dumps([Item(), helper, safe_refs.loads(early)]))
        print(json.dumps([judged(written), json.loads(in_child(lambda: json.dumps(judged(written)).encode()))]))
        """,
        script=tmp_path / "script.py",
    )
    assert found == [[True] * 4] * 2


def test_a_script_that_runs_again_in_the_same_process_opens_its_own_classes(tmp_path: Path) -> None:
    """As with plain pickle: Streamlit has a script do so, as another module, which is called `__main__`, too."""
    found = run_python(
        """
        import json, sys, types, safe_refs
        code = '''
        class Item: pass
        def helper(): pass
        written.append(safe_refs.dumps([Item(), helper]))
        for each in written:
            item, call = safe_refs.loads(each)
            found.append([type(item) is Item, call is helper])
        '''
        written, found = [], []
        for _ in range(2):
            main = types.ModuleType("__main__")
            vars(main).update(__file__=__file__, safe_refs=safe_refs, written=written, found=found)
            sys.modules["__main__"] = main
            exec(code, vars(main))
        print(json.dumps(found))
        """,
        script=tmp_path / "script.py",
    )
    assert found == [[True, True]] * 3


def test_scripts_from_a_pipe_are_not_taken_for_one_another(tmp_path: Path) -> None:
    """Such a script can't be read again, and so has no digest."""
    code = """
import pathlib, sys, safe_refs
class Item: pass
path = pathlib.Path(sys.argv[1])
if path.exists():
    print(type(safe_refs.loads(path.read_bytes())) is Item)
else:
    path.write_bytes(safe_refs.dumps(Item()))
"""
    command = [sys.executable, "/dev/stdin", str(tmp_path / "data")]
    for expected, more in (("", ""), ("False", "# another one")):
        done = subprocess.run(command, input=code + more, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == expected
