"""What became of each object of a batch: by the child that made it, by Prefect's run, or made before."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.batches.on_workers import Over
from flows.processes.child_processes import Ended
from flows.requests.prompt_files import Member
from tasks.runs.records import list_runs, read_run
from tasks.runs.run import Run

STOPPED = (130, 143, -2, -15)  # exit codes of Ctrl-C and SIGTERM

MISSING = ("failed", "stopped")  # states of objects, after which their batch has failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one object of a batch."""

    line: int
    prompt: str
    seed: int
    method: str
    state: str  # done, reused, failed or stopped
    reason: str = ""
    run_id: str = ""
    seconds: float = 0.0
    metrics: dict[str, float]


Outcomes = Generator[tuple[int, Outcome], None, None]  # with the number of the member


def outcome_of_child(member: Member, child: Ended, run: Run) -> Outcome:
    asked = member.request
    common = {"line": member.line, "prompt": asked.prompt, "seed": asked.seed, "method": asked.method}
    if child.code == 0:
        try:
            record = read_run(Path(run.out), json.loads(child.output)["run_id"])
            started, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
        except (ValueError, KeyError) as error:
            return Outcome(**common, state="failed", reason=f"its record cannot be read ({error})", metrics={})
        seconds = (ended - started).total_seconds()
        return Outcome(**common, state="done", run_id=record["run_id"], seconds=seconds, metrics=record["metrics"])
    state = "stopped" if child.code in STOPPED else "failed"
    found = _runs_of(run, member)
    return Outcome(**common, state=state, reason=child.reason, run_id=found[-1] if found else "", metrics={})


def outcome_of_submitted(member: Member, ended: Over, run: Run) -> Outcome:
    """Say what became of an object, by Prefect's state and, where this machine sees the files, the run's record."""
    asked = member.request
    common = {"line": member.line, "prompt": asked.prompt, "seed": asked.seed, "method": asked.method}
    records = [
        record
        for record in list_runs(Path(run.out))
        if record["prefect"].get("prefect.flow_run_id") == ended.flow_run_id != ""
    ]
    record = records[-1] if records else {"run_id": "", "metrics": {}}
    if ended.state == "Completed":
        return Outcome(
            **common,
            state="done",
            reason="" if records else f"its files are not below {run.out} on this machine",
            run_id=record["run_id"],
            seconds=ended.seconds,
            metrics=record["metrics"],
        )
    return Outcome(
        **common,
        state="stopped" if ended.state in ("Cancelled", "Stopped") else "failed",
        reason=str(record.get("error") or ended.message),
        run_id=record["run_id"],
        metrics={},
    )


def reused(member: Member, run_id: str, reason: str, metrics: Mapping[str, float]) -> Outcome:
    asked = member.request
    return Outcome(
        line=member.line, prompt=asked.prompt, seed=asked.seed, method=asked.method, state="reused", reason=reason,
        run_id=run_id, metrics=dict(metrics),
    )  # fmt: skip


def not_made(run: Run, member: Member) -> Outcome:
    """Say of an object that its batch ended before it, with the run that had begun, if one had."""
    asked = member.request
    begun = _runs_of(run, member)
    return Outcome(
        line=member.line, prompt=asked.prompt, seed=asked.seed, method=asked.method, state="stopped",
        reason="the batch ended before it", run_id=begun[-1] if begun else "", metrics={},
    )  # fmt: skip


def _runs_of(run: Run, member: Member) -> list[str]:
    """Return the runs of a batch that were asked for an object, the oldest first."""
    asked = json.loads(json.dumps(member.request.parameters()))
    return [
        record["run_id"]
        for record in list_runs(Path(run.out))
        if record.get("batch") == run.run_id and record["request"] == asked
    ]
