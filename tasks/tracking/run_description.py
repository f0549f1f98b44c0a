"""What MLflow's and Prefect's pages say of a run: its prompt, its picture, its stages, and where everything else is.

Notes are Markdown. MLflow shows pictures of its own server only, so that their addresses are relative to its page.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

MAX_COMPARED = 10  # runs side by side


def run_note(
    prompt: str,
    run_id: str,
    tags: Mapping[str, str],
    stages: Mapping[str, Any] | None = None,
    shown: Sequence[str] = (),
) -> str:
    """Describe a run: the prompt, what it repeats, where Prefect shows it, and its stages.

    Args:
        shown: Markdown between the prompt and the rest.
    """
    lines = [f"**{as_text(prompt)}**", "", *(line for entry in shown for line in (entry, "")), f"Run `{run_id}`."]
    if parent := tags.get("redream.rerun_of"):
        lines.append(f"Repeats `{parent}` in part.")
    if url := tags.get("prefect.flow_run_url"):
        lines.append(f"Prefect: [{as_text(tags.get('prefect.flow_run_name', 'flow run'))}]({url}).")
    if stages:
        lines += ["", "| stage | state | seconds |", "|---|---|---|"]
        lines += [f"| {name} | {entry['state']} | {entry.get('seconds', '')} |" for name, entry in stages.items()]
    return "\n".join(lines)


def picture_and_files(mlflow_run_id: str, picture: str, files: Sequence[str]) -> list[str]:
    """Show an artifact of a run on its page in MLflow, and link others."""
    address = f"get-artifact?run_uuid={mlflow_run_id}&path="
    return [f"![{picture}]({address}{picture})", " · ".join(f"[{name}]({address}{name})" for name in files)]


def comparison(mlflow_run_ids: Sequence[str], experiment_id: str) -> str:
    """Link MLflow's comparison of runs, of the last ones where there are many."""
    runs, experiments = json.dumps(mlflow_run_ids[-MAX_COMPARED:]), json.dumps([experiment_id])
    num_others = min(len(mlflow_run_ids), MAX_COMPARED) - 1
    others = "another run" if num_others == 1 else f"{num_others} other runs"
    address = f"#/compare-runs?runs={quote(runs, safe=':')}&experiments={quote(experiments)}"
    return f"[Compare with {others} of this prompt]({address})"


def as_text(text: str) -> str:
    """Escape what Markdown would read as markup: prompts come from strangers."""
    return re.sub(r"([\\`*_{}\[\]()<>#+.!|&~-])", r"\\\1", text)


def data_url(jpeg: bytes) -> str:
    """Return a picture inside its address, for no server has to hold it and no browser to reach this machine."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
