"""One word for a run that somebody stopped: `stopped` in its record and in MLflow's tag, `Stopped` in Prefect."""

from __future__ import annotations

import os
from typing import Any

from httpx import HTTPError
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled

from tasks.machinery.progress import say, stop_requested

STOPPED = "Stopped"  # a name of Prefect's state Cancelled


def name_stopped(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Rename the end of a run that Ctrl-C or a person's Cancel brought about; a worker's run that crashed goes on."""
    is_command = "PREFECT__FLOW_RUN_ID" not in os.environ and stop_requested.is_set()
    if not (is_command or state.is_cancelled()):
        return
    try:
        with get_client(sync_client=True) as client:
            stopped = Cancelled(name=STOPPED, message="Stopped; its record says how it goes on.")
            client.set_flow_run_state(flow_run.id, stopped, force=True)
    except HTTPError as error:
        say(f"Prefect does not know that this run was stopped ({type(error).__name__})")
