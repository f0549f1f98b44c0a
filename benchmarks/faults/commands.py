"""Faults of commands: kills in every stage and at every kind of write, a full disk, lost and damaged files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.ground import (
    Ground,
    asking,
    end,
    finished_stages,
    free_port,
    own_environment,
    repeating,
    wait_until,
)
from benchmarks.faults.rows import Row, is_root, problems_after_kill, resume, row_after
from flows.service.addresses import ask
from tasks.machinery.store import MANIFEST
from tasks.runs.records import list_runs

TMPFS_BYTES = 64 * 2**20
LEFT_BYTES = 700 * 2**10  # less than a distillation's output
MAX_DELAY = 5.0  # seconds that a dead MLflow may cost a stage
MAX_FILES = 20  # of a stage, at each of which it is killed; of more, at the first, the middle and the last
RERUN = "`redream rerun RUN`"
AGAIN = "the same command"


def killed_in_stage(ground: Ground, fault: str, stage: str) -> Row:
    """Kill a command at work in a stage, and its resumptions as they write the stage's output."""
    is_asset = stage == "take_assets"
    undisturbed = ground.undisturbed_with_asset if is_asset else ground.undisturbed
    out = ground.folder(fault)
    ground.fill(out, stage, undisturbed)
    half = undisturbed["stages"][stage]["seconds"] / 2
    num_files = _num_files(undisturbed, stage)
    deaths = [("working", half), *(("writing", number) for number in _some(num_files))]
    # Publishing is the same code for every stage.
    deaths += [("publishing", 0), ("published", 0)] if stage == "distill" else []
    command = asking(out, *(ground.asset if is_asset else []))
    problems: list[str] = []
    kept: set[str] = set()
    for moment, amount in deaths:
        ended = end(ground.start(fault, command, [moment, stage, str(amount)]))
        record = list_runs(out)[-1]
        if ended.code != -signal.SIGKILL:
            problems.append(f"not killed while {moment} but ended with {ended.code}: {ended.last_line}")
            break
        problems += problems_after_kill(fault, out, record, stage)
        kept = finished_stages(record)
        command = repeating(out, record["run_id"])
    is_there = deaths[-1][0] == "published"
    kept |= {stage} if is_there else set()
    happened = f"killed {half:.1f} s into it, and at {_files(num_files)}"
    happened += ", and right before and after its output counts" if is_there else ""
    problems += resume(ground, fault, command)
    return row_after(ground, fault, out, happened, RERUN, kept, problems, undisturbed)


def killed_at_checkpoint(ground: Ground, fault: str) -> Row:
    """Kill a distillation before its third checkpoint takes the place of the second."""
    out = ground.folder(fault)
    ground.fill(out, "distill")
    ended = end(ground.start(fault, asking(out), ["checkpoint", "distill", "0"]))
    (record,) = list_runs(out)
    problems = [] if ended.code == -signal.SIGKILL else [f"not killed: {ended.last_line}"]
    problems += problems_after_kill(fault, out, record, "distill")
    kept = finished_stages(record)
    steps = _resumed_steps(out)
    problems += resume(ground, fault, repeating(out, record["run_id"]))
    happened = f"killed with its third checkpoint written but not in place; {steps} steps were recorded"
    return row_after(ground, fault, out, happened, RERUN, kept, problems)


def killed_with_own_server(ground: Ground, fault: str) -> Row:
    """Kill a command that had started a Prefect server for itself."""
    out = ground.folder(fault)
    ground.fill(out, "distill")
    ended = end(ground.start(fault, asking(out), ["publishing", "distill", "0"], servers={}))
    (record,) = list_runs(out)
    problems = [] if ended.code == -signal.SIGKILL else [f"not killed: {ended.last_line}"]
    problems += problems_after_kill(fault, out, record, "distill")
    problems += resume(ground, fault, repeating(out, record["run_id"]), servers={})
    happened = "killed as it published; its Prefect server ended by itself"
    return row_after(ground, fault, out, happened, RERUN, finished_stages(record), problems, mlflow="")


def mlflow_dead(ground: Ground, fault: str) -> Row:
    """Kill MLflow before a stage, and start it again after the run."""
    return _mlflow_away(ground, fault, signal.SIGKILL)


def mlflow_hangs(ground: Ground, fault: str) -> Row:
    """Let MLflow accept connections and not answer, before a stage and until after the run."""
    return _mlflow_away(ground, fault, signal.SIGSTOP)


def disk_full(ground: Ground, fault: str) -> Row:
    """Let the disk run full while a distillation writes its output, and make room again."""
    if not is_root():
        return Row(happened="", skipped="needs root, to mount a small disk")
    with _small_disk(ground.folder(fault)) as out:
        ground.fill(out, "distill")
        filler = out / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(out).free - LEFT_BYTES))
        ended = end(ground.start(fault, asking(out)))
        (record,) = list_runs(out)
        problems = [f"ended with {ended.code}"] if ended.code not in (1, 2) else []
        kept = finished_stages(record)
        filler.unlink()
        problems += resume(ground, fault, repeating(out, record["run_id"]))
        happened = f"distill {record['stages'].get('distill', {}).get('state', 'not begun')}: “{ended.last_line}”"
        return row_after(ground, fault, out, happened, f"room on the disk, then {RERUN}", kept, problems)


def read_only(ground: Ground, fault: str) -> Row:
    """Start in a folder on a disk that cannot be written."""
    if not is_root():
        return Row(happened="", skipped="needs root, to mount a disk read-only")
    with _small_disk(ground.folder(fault)) as out:
        ground.fill(out, "distill")
        subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        ended = end(ground.start(fault, asking(out)))
        lines = ended.said.strip().splitlines()
        problems = [] if ended.code == 2 and len(lines) == 1 else [f"code {ended.code}, {len(lines)} lines"]
        subprocess.run(["mount", "-o", "remount,rw", out], check=True)
        kept = {path.parts[-4] for path in (out / "store").glob(f"*/??/*/{MANIFEST}")}
        problems += resume(ground, fault, asking(out))
        happened = f"refused with code {ended.code}: “{ended.last_line.replace(str(out), 'OUT')}”"
        return row_after(ground, fault, out, happened, f"a disk that can be written, then {AGAIN}", kept, problems)


def truncated(ground: Ground, fault: str) -> Row:
    """Cut files of finished stages in half, manifests among them, and ask for the same again."""
    out = ground.folder(fault)
    ground.fill(out, "export")
    cut = {"render": "", "adapt": MANIFEST, "distill": ""}
    for stage, name in cut.items():
        (folder,) = (out / "store" / stage).glob("??/*")
        largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        path = folder / name if name else largest
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    problems = resume(ground, fault, asking(out))
    (record,) = list_runs(out)
    made = {stage for stage in cut if record["stages"][stage]["state"] == "computed"}
    problems += [] if made == cut.keys() else [f"used as they were: {', '.join(cut.keys() - made)}"]
    kept = ground.undisturbed["stages"].keys() - cut.keys() - {"export"}
    happened = f"half of a file of {', '.join(cut)} gone; these were made again, the rest reused"
    return row_after(ground, fault, out, happened, AGAIN, kept, problems)


def two_at_once(ground: Ground, fault: str) -> Row:
    """Run the same command twice at the same time."""
    out = ground.folder(fault)
    ground.fill(out, "render")
    kept = {path.parts[-4] for path in (out / "store").glob(f"*/??/*/{MANIFEST}")}
    both = [ground.start(fault, asking(out)) for _ in range(2)]
    ended = [end(process) for process in both]
    problems = [f"ended with {each.code}: {each.last_line}" for each in ended if each.code != 0]
    records = list_runs(out)
    for stage in ground.undisturbed["stages"].keys() - kept:
        states = sorted(record["stages"].get(stage, {}).get("state", "missing") for record in records)
        if states != ["cached", "computed"]:
            problems.append(f"{stage} was {' and '.join(states)}")
    happened = f"{len(ground.undisturbed['stages'].keys() - kept)} stages made once, by one or the other"
    return row_after(ground, fault, out, happened, "not needed", kept, problems)


def _mlflow_away(ground: Ground, fault: str, how: signal.Signals) -> Row:
    out = ground.folder(fault)
    ground.fill(out, "warm_up")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = _start_mlflow(ground, fault, port)
    addresses = {"PREFECT_API_URL": ground.served.addresses["PREFECT_API_URL"], "MLFLOW_TRACKING_URI": url}
    process = ground.start(fault, asking(out), servers=addresses)
    wait_until(lambda: any("warm_up" in record["stages"] for record in list_runs(out)) or process.poll() is not None)
    _signal_family(server, how)
    ended = end(process)
    (record,) = list_runs(out)
    problems = [] if ended.code == 0 else [f"the run ended with {ended.code}: {ended.last_line}"]
    delay, usual = _delay(record), _delay(ground.undisturbed)
    longer = record["stages"]["distill"]["seconds"] - ground.undisturbed["stages"]["distill"]["seconds"]
    problems += [f"distill waited {delay:.1f} s"] if delay > MAX_DELAY else []
    problems += [f"distill's own work took {longer:.1f} s longer"] if longer > MAX_DELAY else []
    num_waiting = len(list((out / "spool").glob("*-*/*.json")))
    if how == signal.SIGSTOP:
        _signal_family(server, signal.SIGCONT)
    else:
        server.wait()
        server = _start_mlflow(ground, fault, port)
    synced = end(ground.start(fault, ["sync", "--out", str(out)], servers=addresses))
    problems += [] if synced.code == 0 else [f"sync ended with {synced.code}: {synced.last_line}"]
    happened = f"the run went on; {delay:.1f} s of distill were no work (undisturbed {usual:.1f} s), "
    happened += f"and its work took {abs(longer):.1f} s {'more' if longer > 0 else 'less'}; "
    happened += f"{num_waiting} events waited and were delivered"
    row = row_after(ground, fault, out, happened, "`redream sync`", set(), problems, mlflow=url)
    _signal_family(server, signal.SIGTERM)
    server.wait()
    return row


def _delay(record: dict[str, Any]) -> float:
    """Return the seconds around a distillation's own work: since the stages before it, and until it was recorded."""
    stages = record["stages"]
    distill = stages["distill"]
    since = max(datetime.fromisoformat(stages[stage]["ended"]) for stage in ("warm_up", "adapt"))
    return (datetime.fromisoformat(distill["ended"]) - since).total_seconds() - distill["seconds"]


def _start_mlflow(ground: Ground, fault: str, port: int) -> subprocess.Popen[bytes]:
    """Start an MLflow server of the fault's own, and wait until it answers."""
    settings = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{ground.work / fault}.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(ground.work / f"{fault}.artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)],
        env={**own_environment("servers"), **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    ground.processes.append(server)
    wait_until(lambda: ask(f"http://127.0.0.1:{port}/health")[0] == 200)
    return server


def _signal_family(server: subprocess.Popen[bytes], number: signal.Signals) -> None:
    for process in [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]:
        process.send_signal(number)


def _num_files(record: dict[str, Any], stage: str) -> int:
    folder = Path(record["folder"]).parents[1] / record["stages"][stage]["folder"]
    return len(json.loads((folder / MANIFEST).read_text())["files"])


def _some(num_files: int) -> list[int]:
    return [*range(1, num_files + 1)] if num_files <= MAX_FILES else [1, num_files // 2, num_files]


def _files(num_files: int) -> str:
    if num_files > MAX_FILES:
        return f"the first, the middle and the last of its {num_files} files"
    return "its file" if num_files == 1 else f"each of its {num_files} files"


def _resumed_steps(out: Path) -> int:
    (steps,) = (out / "store" / "partial" / "distill").glob("*/checkpoint/steps.jsonl")
    return steps.read_text().count("\n")


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """Mount a small disk in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
