"""A process worker that stops as one wants it to: `python -m flows.service.worker --pool local --limit 1`.

Prefect's own worker kills its runs when it is told to stop, and leaves them `Running` for ever. This one, on the first
SIGTERM or Ctrl-C, takes nothing new and lets its runs finish; on the second it ends them and says so to the server,
where `flows/service/keeper.py` schedules them again. Everything else is Prefect's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil

from flows.processes.environment import check_prefect, prepare_worker
from flows.requests.request import DEFAULT_OUT, checked_out

if TYPE_CHECKING:
    from prefect.workers.process import ProcessWorker

GRACE_SECONDS = 10
STOPPED = "The worker was stopped; another attempt continues from the last checkpoint."


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.service.worker", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("--pool", default="local", help="work pool of the Prefect server at PREFECT_API_URL")
    parser.add_argument("--limit", type=int, default=1, help="runs at a time; 0 for one more than may train")
    parser.add_argument("--name", default=f"{socket.gethostname()}-{os.getpid()}")
    parser.add_argument("--out", default=DEFAULT_OUT, help="where runs, stage outputs and databases go")
    asked = parser.parse_args()
    if asked.limit < 0:
        parser.error(f"--limit is {asked.limit}; it must be at least 0")
    try:
        out = checked_out(asked.out)
    except ValueError as error:
        parser.error(str(error))
    if not os.environ.get("PREFECT_API_URL"):
        parser.error("set PREFECT_API_URL to the server's address, such as http://127.0.0.1:4200/api")
    prepare_worker(out)
    try:
        check_prefect(os.environ["PREFECT_API_URL"], "PREFECT_API_URL")
    except ValueError as error:
        parser.error(str(error))
    sys.exit(asyncio.run(work(asked.pool, asked.limit or one_more_than_may_train(), asked.name)))


def one_more_than_may_train() -> int:
    """Return how many runs keep the machine busy: one retrieves and renders while the others compute."""
    from tasks.machinery.slots import num_slots

    return num_slots() + 1


async def work(pool: str, limit: int, name: str) -> int:
    """Take runs until told to stop; returns 0 after a drain, 143 where runs were ended."""
    from prefect.workers.process import ProcessWorker

    worker = ProcessWorker(work_pool_name=pool, limit=limit, name=name)
    asked_to_stop = [asyncio.Event(), asyncio.Event()]

    def stop() -> None:
        next((event for event in asked_to_stop if not event.is_set()), asked_to_stop[-1]).set()

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop)
    working = asyncio.create_task(worker.start())
    await _first(working, asked_to_stop[0].wait())
    draining = asyncio.create_task(_drain(worker))
    await _first(working, draining, asked_to_stop[1].wait())
    draining.cancel()
    under_way = _runs_of(worker) if worker.is_setup and not working.done() else []
    await asyncio.to_thread(_end_processes, psutil.Process().children(recursive=True))
    working.cancel()
    await asyncio.gather(working, draining, return_exceptions=True)
    await _report_stopped(under_way)
    if not working.cancelled():
        working.result()  # raises what ended it
    return 143 if under_way else 0


async def _first(*waits: Awaitable[Any]) -> None:
    """Wait for the first of several things, and leave alone those that are tasks."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, wait in zip(tasks, waits, strict=True):
        if task is not wait:
            task.cancel()


async def _drain(worker: ProcessWorker) -> None:
    """Take no more runs, and wait for those under way."""
    if not worker.is_setup:
        return
    worker.limiter.total_tokens = 0
    said = -1
    while (remaining := worker.limiter.borrowed_tokens) > 0:
        if remaining != said:
            said = remaining
            print(f"worker: {remaining} runs to finish; stopping again ends them now", file=sys.stderr, flush=True)
        await asyncio.sleep(0.5)


def _runs_of(worker: ProcessWorker) -> list[UUID]:
    return [borrower for borrower in worker.limiter.statistics().borrowers if isinstance(borrower, UUID)]


def _end_processes(processes: list[psutil.Process]) -> None:
    """Ask processes to end, and end those that do not."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)


async def _report_stopped(run_ids: list[UUID]) -> None:
    """Tell the server of runs that were ended and could not tell it themselves."""
    if not run_ids:
        return
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    async with get_client() as client:
        for run_id in run_ids:
            run = await client.read_flow_run(run_id)
            if run.state is not None and not run.state.is_final():
                await client.set_flow_run_state(run_id, Crashed(message=STOPPED), force=True)


if __name__ == "__main__":
    main()
