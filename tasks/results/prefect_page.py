"""What Prefect's page of a finished run shows: the object from all sides, figures and stages, and where the rest is."""

from __future__ import annotations

import io
import json

from httpx import HTTPError
from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact

from redream.messages import reason
from redream.pages.text import visible_text
from tasks.evaluation import sheet_name
from tasks.machinery.progress import say
from tasks.machinery.store import Output
from tasks.results.delivery import Made
from tasks.runs.run import Run
from tasks.tracking.run_description import as_text, data_url, run_note
from tasks.tracking.tracker import run_address

ORBIT, RESULT = "orbit", "result"  # keys of the artifacts


def show_made(run: Run, made: Made, report: Output) -> None:
    """Give Prefect the picture and the figures of a run; a server that is away costs the run nothing."""
    prompt = as_text(visible_text(made.prompt if len(made.prompt) <= 200 else f"{made.prompt[:199]}…"))
    try:
        create_image_artifact(_picture(report), key=ORBIT, description=prompt)
        create_markdown_artifact(_markdown(run, made), key=RESULT, description=prompt)
    except HTTPError as error:
        say(f"Prefect has no picture of this run ({reason(error)})")


def _markdown(run: Run, made: Made) -> str:
    stages = json.loads((run.folder / "run.json").read_text())["stages"]
    lines = [run_note(made.prompt, run.run_id, {}, stages), "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in sorted(made.metrics.items())]
    if address := run_address(run.tracking, made.mlflow_run_id):
        lines += ["", f"[The run in MLflow]({address})"]
    return "\n".join(
        [*lines, "", f"Page: `{made.page}`", "", f"In part anew: `redream rerun {run.run_id} --from STAGE`"]
    )


def _picture(report: Output) -> str:
    """Return the first particle's sheet of views as a JPEG in an address."""
    buffer = io.BytesIO()
    with Image.open(report.path(sheet_name(0))) as sheet:
        sheet.convert("RGB").save(buffer, format="JPEG", quality=85)
    return data_url(buffer.getvalue())
