"""Code that changes without its stage's version would leave old outputs in the store: these digests tell.

`stage_versions.json` holds, for each file of stages, its `STAGE_VERSION` and a digest of the modules that it reaches,
as syntax trees without docstrings, so that formatting and comments change nothing. After a change:

    python -m tests.tasks.test_stage_versions              where STAGE_VERSION was raised
    python -m tests.tasks.test_stage_versions --unchanged  where no stage's result has changed
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("stage_versions.json")
METHOD = ("redream", "index_build")  # what tasks import of each other is bookkeeping,
SEARCH = "tasks.machinery.searching"  # but for this
SETTINGS = ("redream.settings", "redream.presets")  # their values are in the keys
UPDATE = "python -m tests.tasks.test_stage_versions"
STAGES = sorted(path for path in (ROOT / "tasks").glob("*.py") if "\nSTAGE_VERSION" in path.read_text())


def current(path: Path) -> dict[str, Any]:
    """Return a stage file's version and the digest of its code and of all of the method that it reaches."""
    version = next(
        node.value.value
        for node in tree_of(path).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "STAGE_VERSION"
    )
    found, waiting = {path}, [path]
    while waiting:
        for module in imported(waiting.pop()) - found:
            found.add(module)
            waiting.append(module)
    digest = hashlib.sha256()
    for module in sorted(found):
        digest.update(f"{module.relative_to(ROOT).as_posix()}\0{code(module)}\0".encode())
    return {"version": version, "code": digest.hexdigest()[:16]}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def code(path: Path) -> str:
    """Return a module's syntax without docstrings and without its stage's version."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "STAGE_VERSION":
            node.value = ast.Constant(0)
    return repr(_plain(tree))


def _plain(node: Any) -> Any:
    """Return a syntax tree as lists, without the empty fields that differ between versions of Python."""
    if isinstance(node, ast.AST):
        parts = ((name, value) for name, value in ast.iter_fields(node) if name != "kind" and value not in (None, []))
        return [type(node).__name__, *((name, _plain(value)) for name, value in parts)]
    return [_plain(item) for item in node] if isinstance(node, list) else node


@cache
def imported(path: Path) -> frozenset[Path]:
    """Return the modules of the method that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    ours = (name for name in names if name.split(".")[0] in METHOD and name not in SETTINGS or name == SEARCH)
    return frozenset(file for name in ours if (file := ROOT / f"{name.replace('.', '/')}.py").is_file())


def recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_code_of_a_stage_changes_with_its_version(path: Path) -> None:
    known, now = recorded().get(path.stem, {}), current(path)
    assert known.get("code") == now["code"] or known.get("version") != now["version"], (
        f"the code behind {path.name} has changed: raise its STAGE_VERSION if its result can be another and run "
        f"`{UPDATE}`, else run `{UPDATE} --unchanged`"
    )
    assert known == now, f"the new version of {path.name} is not recorded: run `{UPDATE}`"


def test_formatting_comments_and_docstrings_are_no_change(tmp_path: Path) -> None:
    one, other, third = (tmp_path / name for name in ("one.py", "other.py", "third.py"))
    one.write_text('"""A."""\nSTAGE_VERSION = 1\n\ndef f(x):\n    """Double."""\n    return x * 2  # twice\n')
    other.write_text('"""B."""\nSTAGE_VERSION = 2\ndef f( x ):\n    return (x*2)\n')
    third.write_text("STAGE_VERSION = 1\ndef f(x):\n    return x * 3\n")
    assert code(one) == code(other)
    assert code(one) != code(third)


def test_modules_reached_through_others_count() -> None:
    reached = imported(ROOT / "tasks" / "distillation.py")
    assert ROOT / "redream" / "distill" / "loop.py" in reached
    methods = ROOT / "redream" / "distill" / "methods"
    assert methods / "table.py" in imported(ROOT / "redream" / "distill" / "loop.py")
    assert methods / "vsd.py" in imported(methods / "table.py")


def update(is_unchanged: bool) -> int:
    """Record the digests; refuse those whose version should have been raised."""
    known, now = recorded(), {path.stem: current(path) for path in STAGES}
    stale = [
        name
        for name, entry in now.items()
        if name in known and known[name]["code"] != entry["code"] and known[name]["version"] == entry["version"]
    ]
    if stale and not is_unchanged:
        print(f"raise STAGE_VERSION in {', '.join(f'tasks/{name}.py' for name in stale)}, or pass --unchanged")
        return 2
    RECORDED.write_text(json.dumps(now, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(update("--unchanged" in sys.argv[1:]))
