"""Make a small mistake in a copy of the code, run the tests that mirror the file, and see whether one of them fails.

    python -m benchmarks.mutants                   # 40 mutants of each file; again with --per-file 80 for more
    python -m benchmarks.mutants --per-file 0      # only the changes of changes.toml, which a reader made by hand
    python -m benchmarks.mutants --only loop.py    # one file
    python -m benchmarks.mutants --table           # what is known so far, as benchmarks/RESULTS.md shows it

Every result is kept in `.mutants/results.jsonl` at once, so a killed run continues. Why a runner of our own over the
operators of mutmut: mutmut 3 leaves out decorated functions (here all under `torch.no_grad`, all stages, compiled
kernels) and what stands at the top of a module, and cosmic-ray starts a process per mutant, whose imports take 15
seconds. Here one process imports all libraries and forks for each mutant. It leaves our own modules to the forks: in a
process that has them, what is imported again meets beartype's memory of the classes of before.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.mutants.operators import Mutant, mutants_of

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
OURS = ("redream", "index_build", "tasks", "flows", "tests", "benchmarks", "conftest")
FILES = tomllib.loads((HERE / "files.toml").read_text())
CHANGES = tomllib.loads((HERE / "changes.toml").read_text())["change"]
EQUIVALENT = tomllib.loads((HERE / "equivalent.toml").read_text())
SETTING = "-m", "not slow and not network and not gpu", "-p", "no:cacheprovider", "-x", "-q", "--tb=line"


@dataclass(frozen=True)
class Target:
    """A file, what is changed in it, and the tests that should notice."""

    path: str
    tests: list[str]
    mutants: list[Mutant]


def targets(per_file: int, only: str) -> Iterator[Target]:
    """Yield the changes that a reader made by hand, then a sample of the mutants of every file in its order."""
    for change in CHANGES:
        source = (ROOT / change["file"]).read_text()
        if source.count(change["old"]) != 1:
            print(f"changes.toml: {change['name']}: left out, its old text is not in {change['file']} exactly once")
            continue
        write = partial(source.replace, change["old"], change["new"])
        line = source[: source.index(change["old"])].count("\n") + 1
        if only in change["file"]:
            yield Target(change["file"], change["tests"], [Mutant(f"by hand: {change['name']}", line, write)])
    for path, tests in FILES.items():
        if per_file and only in path:
            yield Target(path, tests or [mirror(path)], mutants_of((ROOT / path).read_text())[:per_file])


def mirror(path: str) -> str:
    return str(Path("tests", path).with_name(f"test_{Path(path).name}"))


class Copy:
    """A copy of the working tree in which files are changed and tests run; this process never imports our code."""

    def __init__(self, folder: Path) -> None:
        self.root, self.changes = folder / "tree", int(time.time())
        shutil.rmtree(self.root, ignore_errors=True)
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
        for name in listed.stdout.decode().splitlines():
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.root / name)
        os.chdir(self.root)
        os.environ["PYTHONPATH"] = str(self.root)
        sys.path[:] = [str(self.root), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
        runpy.run_path("tests/conftest.py")  # sets the environment that the libraries read as they are imported
        import pytest  # noqa: F401

    def write(self, path: str, source: str) -> None:
        (self.root / path).write_text(source)
        self.changes += 2  # compiled modules are recognised by the second of their source
        os.utime(self.root / path, (self.changes, self.changes))

    def run(self, tests: list[str], seconds: float) -> str:
        """Run the tests in a fork, and tell how it ended: `passed`, `failed` or `late`."""
        child = os.fork()
        if child == 0:
            self._test(tests)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                self._end(child)
                return "passed" if status == 0 else "failed"
            time.sleep(0.02)
        self._end(child)
        os.waitpid(child, 0)
        return "late"

    def _test(self, tests: list[str]) -> None:
        os.setsid()
        log = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        import pytest

        code = 3
        try:
            code = int(pytest.main([*SETTING, *tests]))
            names = [name for name in list(sys.modules) if name.split(".")[0] not in OURS]
            Path("modules.json").write_text(json.dumps(names))
        finally:
            os._exit(code)

    def _end(self, child: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)

    def measure(self, tests: list[str]) -> float:
        """Run the tests on the code as it is, import here what they imported, and return how long they take then."""
        start = time.monotonic()
        if self.run(tests, 600) != "passed":
            raise SystemExit(f"the tests fail without a mistake, see {self.root}/pytest.log: {' '.join(tests)}")
        seconds = time.monotonic() - start
        for name in json.loads(Path("modules.json").read_text()):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: S112, BLE001 - a child imports it itself then
                continue
        return seconds


def read_results(path: Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["key"]: row for row in map(json.loads, lines)}  # the last word counts


def key_of(path: str, mutant: Mutant) -> str:
    return f"{path} : {mutant.name}"


def is_open(target: Target, mutant: Mutant, results: dict[str, dict], again: bool) -> bool:
    row = results.get(key_of(target.path, mutant))
    if row is None or (mutant.name.startswith("by hand") and row["code"] != _digest(mutant.write())):
        return True
    return again and row["outcome"] == "passed" and key_of(target.path, mutant) not in EQUIVALENT


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _files(target: Target) -> tuple[str, ...]:
    return tuple(test.partition("::")[0] for test in target.tests)


def try_all(work: list[Target], results_path: Path, folder: Path, again: bool) -> None:
    results = read_results(results_path)
    todo = [(target, [x for x in target.mutants if is_open(target, x, results, again)]) for target in work]
    left = sum(len(mutants) for _, mutants in todo)
    if not left:
        return
    copy, start, done, seconds = Copy(folder), time.monotonic(), 0, {}
    for target, mutants in todo:
        files = _files(target)
        if mutants and files not in seconds:
            together = [test for other, some in todo if some and _files(other) == files for test in other.tests]
            seconds[files] = copy.measure(list(dict.fromkeys(together)))
        for mutant in mutants:
            source = mutant.write()
            copy.write(target.path, source)
            began = time.monotonic()
            outcome = copy.run(target.tests, 60 + 5 * seconds[files])
            row = {
                "key": key_of(target.path, mutant),
                "line": mutant.line,
                "outcome": outcome,
                "seconds": round(time.monotonic() - began, 2),
                "code": _digest(source),
            }
            with results_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done += 1
            minutes = (time.monotonic() - start) / done * (left - done) / 60
            print(f"{done}/{left}  {minutes:.0f} min left  {outcome}  {row['key']}", flush=True)
        if mutants:
            copy.write(target.path, (ROOT / target.path).read_text())


def table(work: list[Target], results: dict[str, dict]) -> str:
    """Return per file how many were tried, noticed and equivalent, and below it every survivor."""
    lines = ["| file | mutants tried | noticed | equivalent | share noticed |", "|---|---|---|---|---|"]
    counts: dict[str, list[int]] = {}
    survivors = []
    for target in work:
        for mutant in target.mutants:
            key = key_of(target.path, mutant)
            if key not in results:
                continue
            has_survived = results[key]["outcome"] == "passed"
            is_equivalent = has_survived and key in EQUIVALENT
            name = "by hand (changes.toml)" if mutant.name.startswith("by hand") else target.path
            count = counts.setdefault(name, [0, 0, 0])
            count[0], count[1], count[2] = count[0] + 1, count[1] + (not has_survived), count[2] + is_equivalent
            if has_survived and not is_equivalent:
                survivors.append(f"- {target.path}:{mutant.line} `{mutant.name}`")
    counts["all"] = [sum(column) for column in zip(*counts.values())] if counts else [0, 0, 0]
    for name, (tried, noticed, equivalent) in counts.items():
        share = noticed / max(1, tried - equivalent)
        lines.append(f"| {name} | {tried} | {noticed} | {equivalent} | {share:.1%} |")
    return "\n".join([*lines, "", f"{len(survivors)} survivors:", "", *survivors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-file", type=int, default=40, help="mutants of each file (default 40); 0: changes.toml")
    parser.add_argument("--only", default="", help="files whose path contains this")
    parser.add_argument("--again", action="store_true", help="try survivors again, after their tests have changed")
    parser.add_argument("--table", action="store_true", help="print what is known and try nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / ".mutants", help="for results and the copy of the code")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    work, results = list(targets(args.per_file, args.only)), args.folder.resolve() / "results.jsonl"
    if not args.table:
        try_all(work, results, args.folder.resolve(), args.again)
    print(table(work, read_results(results)))


if __name__ == "__main__":
    main()
