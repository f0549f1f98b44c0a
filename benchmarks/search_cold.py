"""The whole `redream search` command in a new process with a text tower of ViT-L's size, and where its time goes.

The CLIP is open_clip's ViT-L-14 with random weights, the index that of `benchmarks.retrieval` (800,000 x 768), which
gets that CLIP's name. "Evicted" runs find neither weights nor index in the page cache; parts are those of a run whose
weights' hash is kept. Run as
`python -m benchmarks.search_cold --work DIR`, after `python -m benchmarks.retrieval --work DIR --methods ours`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

PROMPT = "a small red wooden chair"


def make_clip(folder: Path) -> None:
    """Save a ViT-L-14 with random weights in open_clip's form."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model("ViT-L-14")
    preprocess = open_clip.get_model_preprocess_cfg(model)
    config = {"model_cfg": open_clip.get_model_config("ViT-L-14"), "preprocess_cfg": preprocess}
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def name_clip(index_dir: Path, folder: Path) -> None:
    """Let the index say that it was made with this CLIP."""
    from redream.retrieval.index_files import read_manifest, write_manifest
    from redream.weights import weights_digest

    clip_model = f"{folder.name}@{weights_digest(str(folder))}"
    write_manifest(replace(read_manifest(index_dir), clip_model=clip_model))


def evict(*folders: Path) -> None:
    """Ask the system to forget its copies of the files; a file system in memory cannot."""
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_command(work: Path, index_dir: Path, clip_folder: Path) -> tuple[float, float]:
    """Return seconds on the clock and seconds of processor time, which a busy machine does not stretch as much."""
    command = [
        sys.executable,
        "-m",
        "flows.command",
        "search",
        PROMPT,
        "--index",
        str(index_dir),
        "--preset",
        "sd21",
    ]
    command += ["--set", f"retrieval.clip_model={clip_folder}", "--out", str(work / "out"), "--json"]
    started, core_before = time.perf_counter(), children_core_seconds()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, core_seconds = time.perf_counter() - started, children_core_seconds() - core_before
    assert len(json.loads(output)["neighbors"]) == 3
    return seconds, core_seconds


def children_core_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def print_parts(index_dir: Path, clip_folder: Path) -> None:
    """Do in this process what the command does, and say what each part takes."""
    started, core_started = time.perf_counter(), time.process_time()

    def say(part: str) -> None:
        nonlocal started, core_started
        now, core_now = time.perf_counter(), time.process_time()
        print(f"  {now - started:6.2f} s, {core_now - core_started:6.2f} core-seconds: {part}", flush=True)
        started, core_started = now, core_now

    import flows.command.app  # noqa: F401
    import tasks.machinery.searching  # noqa: F401

    say("import of the command")
    from redream.retrieval.index import AssetIndex
    from redream.retrieval.text_tower import open_text_tower

    say("import of retrieval")
    clip = open_text_tower(str(clip_folder))
    assert clip is not None
    say("tokeniser made, weights mapped")
    index = AssetIndex.open(index_dir, clip)
    say("index opened")
    query = clip.embed_prompt(PROMPT)
    say("text tower")
    index.nearest(query, 100, 3)
    say("search")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of `benchmarks.retrieval`")
    parser.add_argument("--runs", type=int, default=3, help="of the command, in each state")
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)  # in a child process
    arguments = parser.parse_args()
    index_dir, clip_folder = arguments.work / "index", arguments.work / "vit-l-14-random"
    if arguments.parts:
        print_parts(index_dir, clip_folder)
        return
    if not clip_folder.is_dir():
        make_clip(clip_folder)
    name_clip(index_dir, clip_folder)
    os.environ["XDG_CACHE_HOME"] = str(arguments.work / "cache")
    for state in ("the weights not hashed before", "their hash is kept", "the same, files evicted"):
        seconds = []
        for _ in range(arguments.runs):
            if state.endswith("before"):
                shutil.rmtree(arguments.work / "cache", ignore_errors=True)
            elif state.endswith("evicted"):
                evict(index_dir, clip_folder)
            seconds.append(time_command(arguments.work, index_dir, clip_folder))
        shown = ", ".join(f"{clock:.1f} s ({core:.1f} core-seconds)" for clock, core in seconds)
        print(f"redream search, {state}: {shown}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.search_cold", "--work", str(arguments.work), "--parts"], check=True
    )


if __name__ == "__main__":
    main()
