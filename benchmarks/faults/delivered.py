"""Faults after the last stage: kills while a run's files are delivered, and of a batch while its objects are made."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from benchmarks.faults.ground import (
    PROMPT,
    Ground,
    asking,
    end,
    finished_stages,
    repeating,
    wait_until,
)
from benchmarks.faults.rows import Row, problems_after_kill, resume, row_after
from tasks.results.delivery import DELIVERED
from tasks.runs.records import list_runs, run_folder

GALLERY = "gallery.html"


def killed_in_delivery(ground: Ground, fault: str) -> Row:
    """Kill a command as it delivers each of its files, as it records them, and as it hands each to MLflow."""
    out = ground.folder(fault)
    ground.fill(out, "nothing")
    deaths = [("delivering", name) for name in DELIVERED]
    deaths += [("recording", DELIVERED[-1]), *(("tracking", name) for name in DELIVERED)]
    command = asking(out)
    problems: list[str] = []
    for moment, name in deaths:
        ended = end(ground.start(fault, command, [moment, name, "0"]))
        if ended.code != -signal.SIGKILL:
            problems.append(f"not killed {moment} {name} but ended with {ended.code}: {ended.last_line}")
            break
        problems += problems_after_kill(fault, out, list_runs(out)[-1])
        command = repeating(out, list_runs(out)[-1]["run_id"])
    kept = finished_stages(list_runs(out)[-1])
    problems += resume(ground, fault, command)
    happened = (
        f"killed at each of its {len(DELIVERED)} files, before and after its name, and before the record has them"
    )
    return row_after(ground, fault, out, happened, "`redream rerun RUN`", kept, problems)


def killed_batch(ground: Ground, fault: str) -> Row:
    """Kill a batch as its object is made, and the next as it writes its gallery."""
    out = ground.folder(fault)
    ground.fill(out, "distill")
    prompts = ground.work / f"{fault}.txt"
    prompts.write_text(f"{PROMPT}\n")
    command = ["batch", str(prompts), *asking(out)[2:]]
    process = ground.start(fault, command)
    wait_until(lambda: any("distill" in record["stages"] for record in _of(out, "generate")))
    process.kill()
    end(process)
    problems = problems_after_kill(fault, out, _of(out, "batch")[-1])
    kept = finished_stages(_of(out, "generate")[-1])
    ended = end(ground.start(fault, command, ["delivering", GALLERY, "0"]))
    problems += [] if ended.code == -signal.SIGKILL else [f"not killed at its gallery: {ended.last_line}"]
    problems += problems_after_kill(fault, out, _of(out, "batch")[-1])
    problems += resume(ground, fault, command)
    batches = _of(out, "batch")
    states = [record["state"] for record in batches]
    problems += [] if states == ["crashed", "crashed", "finished"] else [f"batches {', '.join(states)}"]
    outcomes = json.loads((run_folder(out, batches[-1]["run_id"]) / "outcomes.json").read_text())["outcomes"]
    problems += [] if outcomes[0]["reason"] == "made before" else [f"made again: {outcomes[0]}"]
    happened = "killed with its object in distill, which ended too, and the next with its gallery written, not in place"
    return row_after(ground, fault, out, happened, "the same command", kept, problems)


def _of(out: Path, flow: str) -> list[dict[str, Any]]:
    return [record for record in list_runs(out) if record["flow"] == flow]
