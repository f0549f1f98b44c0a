"""What a run is, in words, from its record alone: for its page, for `redream show`, for the last word of a command."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from redream.overrides import flatten
from redream.presets import PRESETS
from tasks.machinery.progress import duration


def run_facts(record: Mapping[str, Any]) -> dict[str, str]:
    """Say when and from what a run was made; what is not known or does not apply is left out."""
    request = record["request"]
    facts = {
        "date": record["started"].replace("T", " ").removesuffix("+00:00") + " UTC",
        "run": record["run_id"],
        "preset": request["preset"],
        "method": request["method"],
        "seed": str(request["seed"]),
        "index": "" if request["method"] != "redream" or request["assets"] else request["index"] or "the miniature's",
        "own meshes": ", ".join(Path(asset).name for asset in request["assets"]),
        "took": took(record),
        "device": record["device"],
        "repeats": record["rerun_of"],
        "batch": record["batch"],
    }
    return {name: value for name, value in facts.items() if value}


def changed_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from those of the run's preset."""
    preset = json.loads(json.dumps(flatten(PRESETS[record["request"]["preset"]]())))
    settings = record["settings"].items()
    return {name: value for name, value in settings if name != "distill.method" and preset.get(name) != value}


def repeating(request: Mapping[str, Any]) -> str:
    """Return the command that asks for the same again."""
    words = ["redream", "generate", request["prompt"], "--preset", request["preset"]]
    words += ["--method", request["method"], "--seed", str(request["seed"])]
    words += ["--index", request["index"]] if request["index"] else []
    words += [word for asset in request["assets"] for word in ("--asset", asset)]
    for name, value in request["settings"].items():
        words += ["--set", f"{name}={value if isinstance(value, str) else repr(value)}"]
    return shlex.join(words)


def reason_of(out: Path, record: Mapping[str, Any]) -> str:
    """Say why a run has not finished, and what can be done with what is there."""
    run_id, state = record["run_id"], record["state"]
    if state == "running":
        return ""
    why = {"stopped": "stopped", "crashed": "its process died"}.get(state) or str(record.get("error", "failed"))
    run = f"{run_id}{out_option(out)}"
    mesh = f"; `redream export {run}` makes a mesh of what is there" if has_field(out, record) else ""
    return f"{why}; `redream rerun {run}` goes on{mesh}"


def has_field(out: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether a training of a run has saved a field."""
    for stage in ("warm_up", "distill"):
        entry = record["stages"].get(stage, {"state": ""})
        if entry["state"] in ("computed", "cached"):
            return True
        checkpoint = out / "store" / "partial" / stage / entry.get("key", "") / "checkpoint"
        if entry["state"] and (checkpoint / "state" / "state.pt").is_file():
            return True
    return False


def out_option(out: Path) -> str:
    """Return the option that names an output folder, if commands would not find it by themselves."""
    default = Path(os.environ.get("REDREAM_OUT") or "redream-out").absolute()
    return "" if out == default else f" --out {shlex.quote(str(out))}"


def took(record: Mapping[str, Any]) -> str:
    end = datetime.fromisoformat(record["ended"]) if "ended" in record else datetime.now(UTC)
    return duration((end - datetime.fromisoformat(record["started"])).total_seconds())
