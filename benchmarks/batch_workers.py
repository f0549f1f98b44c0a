"""A deployed batch of 8 prompts of the miniature with one worker and with two: how long it takes, and what overlaps.

Each count of workers has servers, a store and an output folder of its own; the index is built before and copied. All
workers are on this machine, so they share its cores, and its count of trainings at a time. Prompts are drawn by a seed
from pairs that the catalog lacks. Run as `python -m benchmarks.batch_workers --work DIR`; finished
counts are kept in DIR, so a repeated call goes on. The gallery that it names has the timeline.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.faults.ground import free_port, own_environment, wait_until
from benchmarks.methods_miniature import prompts
from flows.service.addresses import POOL, ask, num_workers
from tasks.results.gallery import TRAININGS
from tasks.runs.records import list_runs

NUM_PROMPTS = 8
WORKERS = (1, 2)
HOUR = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--preset", default="mini")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    index = work / "index"
    if not (index / "store").is_dir():
        built = [sys.executable, "-m", "flows.command", "index", "build", "--preset", arguments.preset]
        subprocess.run([*built, "--out", str(index)], check=True, env=own_environment(""))
    figures = {}
    for workers in WORKERS:
        out = work / f"{workers} workers"
        if not (out / "figures.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(index / "store", out / "store")
            found = measure(out, workers, arguments.preset)
            (out / "figures.json").write_text(json.dumps(found))
        figures[workers] = json.loads((out / "figures.json").read_text())
        print(f"{workers} workers: {figures[workers]}", flush=True)
    one, two = (figures[workers]["seconds"] for workers in WORKERS)
    print(f"with two workers it takes {two / one:.2f} x as long")
    print(f"timeline: {next((work / '2 workers' / 'runs').glob('*/gallery.html'))}")


def measure(out: Path, workers: int, preset: str) -> dict[str, Any]:
    """Run the batch on servers of its own; returns seconds, and how many of them had two stages at a time."""
    port, mlflow_port = free_port(), free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = own_environment("")
    serve = ["serve", "--limit", "1", "--out", str(out), "--port", str(port), "--mlflow-port", str(mlflow_port)]
    processes = [subprocess.Popen([sys.executable, "-m", "flows.command", *serve], env=environment)]
    try:
        wait_until(lambda: (out / ".serving.json").exists() or processes[0].poll() is not None)
        addresses = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}"}
        for number in range(1, workers):
            worker = [
                sys.executable,
                "-m",
                "flows.service.worker",
                "--pool",
                POOL,
                "--out",
                str(out),
                "--name",
                str(number),
            ]
            processes.append(subprocess.Popen(worker, env={**environment, **addresses}))
        wait_until(lambda: num_workers(api) == workers)
        _, deployment = ask(f"{api}/deployments/name/batch/batch")
        parameters = {"prompts": prompts(NUM_PROMPTS, seed=8), "preset": preset, "out": str(out)}
        run = ask(f"{api}/deployments/{deployment['id']}/create_flow_run", content={"parameters": parameters})[1]
        wait_until(lambda: _state(api, run["id"]) in ("Completed", "Failed", "Crashed"), HOUR)
        if (state := _state(api, run["id"])) != "Completed":
            raise RuntimeError(f"the batch {state}")
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
    records = list_runs(out)
    (batch,) = [record for record in records if record["flow"] == "batch"]
    members = [record for record in records if record["flow"] == "generate"]
    return {
        "seconds": round(_span(batch)[1] - _span(batch)[0], 1),
        "objects": sum(record["state"] == "finished" for record in members),
        "a training and another run's stage at a time, seconds": round(_overlap(members, others=True), 1),
        "two runs' trainings at a time, seconds": round(_overlap(members, others=False), 1),
    }


def _state(api: str, run_id: str) -> str:
    found = ask(f"{api}/flow_runs/{run_id}")[1]
    return (found.get("state") or {}).get("name", "") if isinstance(found, dict) else ""


def _overlap(members: Sequence[dict[str, Any]], others: bool) -> float:
    """Return for how long one run trained while another was in a stage that does not train, or trained as well."""
    moments = [
        (*_span(entry), number, name in TRAININGS)
        for number, record in enumerate(members)
        for name, entry in record["stages"].items()
        if entry["state"] == "computed"
    ]
    edges = sorted({edge for start, end, *_ in moments for edge in (start, end)})
    total = 0.0
    for begin, finish in zip(edges, edges[1:], strict=False):
        active = [(number, trains) for start, end, number, trains in moments if start <= begin and finish <= end]
        training = {number for number, trains in active if trains}
        waiting_on = {number for number, trains in active if not trains} - training
        if (training and waiting_on) if others else len(training) > 1:
            total += finish - begin
    return total


def _span(entry: dict[str, Any]) -> tuple[float, float]:
    start, end = (datetime.fromisoformat(entry[name]).timestamp() for name in ("started", "ended"))
    return start, end


if __name__ == "__main__":
    main()
