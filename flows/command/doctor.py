"""What this machine has for ReDream, which servers run, and what to do about what is lacking."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from flows.command.findings import Finding
from flows.command.weights import check_weights
from flows.processes.environment import read_serving
from flows.service.addresses import (
    BATCH_POOL,
    KEEPER_SEEN,
    MLFLOW_SECRETS,
    POOL,
    PREFECT_SECRET,
    ask,
    has_mlflow_secrets,
    num_workers,
)
from redream.interpreter import python_command
from redream.settings import RunConfig
from redream.weights import MINI_WEIGHTS
from tasks.machinery.devices import (
    FULL_SIZE_GIB,
    SMALL_GIB,
    Gpu,
    find_gpus,
    free_memory,
    is_exclusive,
    needed_gib,
    present_gpus,
    why_not_runs,
)
from tasks.machinery.progress import duration
from tasks.tracking.databases import MLFLOW, PREFECT, is_usable

GL_TIMEOUT_SECONDS = 60
SOFTWARE = ("llvmpipe", "softpipe", "SwiftShader")  # names of OpenGL without a GPU
GRAPHICS = (
    "it works, slower; to draw on the GPU, a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics, and "
    "a machine the OpenGL libraries of its driver"
)
NEEDS_A_GPU = f"the mini preset needs none; sd21 needs one with {FULL_SIZE_GIB:.0f} GiB or more"
COMPILER = "apt-get install gcc libc6-dev python3-dev (Debian, Ubuntu); until then the field is several times slower"
KEEPER_SILENT_SECONDS = 120  # it says every half a minute that it lives
MINI_MODELS = ("prior", "clip-retrieval", "clip-eval-a", "clip-eval-b", "perceptual-a", "perceptual-b", "judge")


def examine(out: Path, config: RunConfig) -> list[Finding]:
    """Look at the machine, a preset's weights, and the servers that commands with this output folder would use."""
    checks: list[Callable[[], Finding]] = [
        check_gl,
        check_scann,
        check_orchestration,
        check_mini_weights,
    ]
    weights = [] if config.prior.model.startswith("mini:") else check_weights(config)
    found = [check_machine(), *check_gpus(needed_gib(config)), *(check() for check in checks), *weights]
    return [*found, *check_databases(out), *check_servers(out)]


def check_machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {cores} cores"
    memory = _memory_gib()
    if memory is not None:
        found += f", {memory:.0f} GiB of memory"
        if memory < 4:
            return Finding(
                name="machine",
                state="optional",
                found=found,
                remedy="the mini preset needs up to 4 GiB; close other programs",
            )
    return Finding(name="machine", state="ok", found=found)


def check_gpus(needed: float = SMALL_GIB) -> list[Finding]:
    """Say of each GPU whether torch can use it, and if any can be, what computes the field there.

    Args:
        needed: memory of a GPU that the preset takes, GiB; above that of the miniature it is no choice but a need.
    """
    devices = find_gpus()
    found = [_check_gpu(gpu, needed) for gpu in devices.gpus]
    found += [
        Finding(name="GPU", state=_state(needed), found=lack.found, remedy=lack.remedy or NEEDS_A_GPU)
        for lack in devices.lacks
    ]
    working = next((gpu for gpu, finding in zip(devices.gpus, found, strict=False) if finding.state == "ok"), None)
    return [*found, *(_check_field(working) if working is not None else [])]


def _state(needed: float) -> Literal["missing", "optional"]:
    return "missing" if needed > SMALL_GIB else "optional"


def _check_gpu(gpu: Gpu, needed: float) -> Finding:
    if trouble := why_not_runs(gpu):
        if is_exclusive(trouble):
            found, remedy = f"{gpu}: another process has it for itself ({trouble})", "wait until that process ends"
        else:
            found, remedy = f"{gpu}: nothing runs on it ({trouble})", "nvidia-smi may say more"
        return Finding(name="GPU", state="optional", found=found, remedy=remedy)
    memory = free_memory(gpu)
    if gpu.gib < FULL_SIZE_GIB:
        state, remedy = _state(needed) if gpu.gib < needed else "ok", NEEDS_A_GPU
        return Finding(name="GPU", state=state, found=f"{gpu}, {memory}", remedy=remedy)
    return Finding(name="GPU", state="ok", found=f"{gpu}, {memory}")


def _check_field(gpu: Gpu) -> list[Finding]:
    """Launch what computes the field on a GPU: a compiler that is missing shows only then."""
    from redream.field.hash_grid import why_not_tinycudann, why_not_triton

    findings = []
    for name, problem, remedy in (
        ("Triton", why_not_triton(gpu.index), COMPILER),
        (
            "tiny-cuda-nn",
            why_not_tinycudann(gpu.index),
            "nothing: Triton computes the same",
        ),
    ):
        state = "optional" if problem else "ok"
        findings.append(Finding(name=name, state=state, found=problem or "works", remedy=remedy if problem else ""))
    return findings


def check_gl() -> Finding:
    # In a process of its own: some drivers end the process instead of reporting an error.
    code = "from redream.render.mesh import gl_renderer; print(gl_renderer())"
    try:
        done = subprocess.run(
            python_command("-c", code), capture_output=True, text=True, timeout=GL_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(
            name="OpenGL",
            state="missing",
            found=f"no answer within {GL_TIMEOUT_SECONDS} s",
            remedy="set PYOPENGL_PLATFORM=osmesa and install libosmesa6",
        )
    if done.returncode == 0:
        renderer = done.stdout.strip().splitlines()[-1]
        if any(name in renderer for name in SOFTWARE) and present_gpus()[1]:
            return Finding(
                name="OpenGL", state="optional", found=f"{renderer}, software, although a GPU is there", remedy=GRAPHICS
            )
        return Finding(name="OpenGL", state="ok", found=renderer)
    reason = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
    remedy = (
        "install libegl1 and libgl1-mesa-dri (Debian, Ubuntu), or set PYOPENGL_PLATFORM=osmesa and install libosmesa6"
    )
    return Finding(name="OpenGL", state="missing", found=reason.partition(": ")[2] or reason, remedy=remedy)


def check_scann() -> Finding:
    if importlib.util.find_spec("scann") is None:
        return Finding(
            name="ScaNN",
            state="optional",
            found="no wheel for this machine",
            remedy="nothing: retrieval searches exactly with numpy",
        )
    return Finding(name="ScaNN", state="ok", found=_version("scann"))


def check_orchestration() -> Finding:
    found = ", ".join(f"{package} {_version(package)}" for package in ("prefect", "mlflow", "fastapi"))
    numbers = tuple(int(part) for part in _version("fastapi").split(".")[:2] if part.isdigit())
    if numbers >= (0, 155) and _version("prefect").startswith("3.8."):
        return Finding(
            name="orchestration",
            state="missing",
            found=found,
            remedy="prefect 3.8 starts no flow with fastapi 0.155 or later; run `uv sync --frozen`",
        )
    return Finding(name="orchestration", state="ok", found=found)


def check_mini_weights() -> Finding:
    absent = [name for name in MINI_MODELS if not (MINI_WEIGHTS / name).is_dir()]
    if absent:
        return Finding(
            name="mini weights",
            state="missing",
            found=f"without {', '.join(absent)}",
            remedy="get them with git (git checkout -- redream/mini/weights), or remake them with "
            "python -m redream.mini.train",
        )
    size = sum(path.stat().st_size for path in MINI_WEIGHTS.rglob("*") if path.is_file())
    return Finding(name="mini weights", state="ok", found=f"{len(MINI_MODELS)} models, {size / 1e6:.0f} MB")


def check_databases(out: Path) -> list[Finding]:
    """Say of each database in the folder whether it is whole; those of a new folder come with its first command."""
    findings = []
    for name, schema in (("mlflow.db", MLFLOW), (".prefect/prefect.db", PREFECT)):
        if not (out / name).exists():
            continue
        try:
            found = (
                "whole" if is_usable(out / name, schema) else "half-made and empty; the next command creates it again"
            )
            findings.append(Finding(name=name, state="ok", found=found))
        except ValueError as error:
            found, _, remedy = str(error).partition("; ")
            findings.append(Finding(name=name, state="missing", found=found, remedy=remedy))
    return findings


def check_servers(out: Path) -> list[Finding]:
    """Say which servers run, and whether a worker would take a run; none is needed for a command like `generate`."""
    serving = read_serving(out) or {}
    api = os.environ.get("PREFECT_API_URL") or serving.get("prefect_api", "")
    mlflow = os.environ.get("MLFLOW_TRACKING_URI") or serving.get("mlflow_url", "")
    if not api and not mlflow:
        return [Finding(name="servers", state="optional", found=f"none for {out}", remedy="redream serve starts them")]
    return [*_check_prefect(api), *_check_mlflow(mlflow)]


def _check_prefect(api: str) -> list[Finding]:
    if not api:
        return []
    secret = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get(PREFECT_SECRET, "")
    status, _ = ask(f"{api}/health", secret)
    if status != 200:
        return [_silent("Prefect", api, status, "PREFECT_API_URL", "PREFECT_API_AUTH_STRING=NAME:PASSWORD")]
    pools = [*_check_pool(api, secret, POOL, limit=1), *_check_pool(api, secret, BATCH_POOL, limit=8)]
    return [Finding(name="Prefect", state="ok", found=api), check_keeper(api, secret), *pools]


def check_keeper(api: str, secret: str = "") -> Finding:
    """Say when the server last heard of the keeper, without which nobody resumes crashed runs."""
    status, variable = ask(f"{api}/variables/name/{KEEPER_SEEN}", secret)
    remedy = "redream serve starts it again; with servers of your own: python -m flows.service.keeper"
    if status != 200:
        return Finding(name="keeper", state="missing", found="never seen; crashed runs are not resumed", remedy=remedy)
    seconds = (datetime.now(UTC) - datetime.fromisoformat(variable["value"])).total_seconds()
    if seconds > KEEPER_SILENT_SECONDS:
        found = f"last seen {duration(seconds)} ago; crashed runs are not resumed"
        return Finding(name="keeper", state="missing", found=found, remedy=remedy)
    return Finding(name="keeper", state="ok", found=f"seen {duration(seconds)} ago")


def _check_pool(api: str, secret: str, name: str, limit: int) -> list[Finding]:
    status, pool = ask(f"{api}/work_pools/{name}", secret)
    if status in (401, 403):
        return [_silent("Prefect", api, status, "PREFECT_API_URL", "PREFECT_API_AUTH_STRING=NAME:PASSWORD")]
    if status != 200:
        remedy = "redream serve, or python -m flows.service.keeper, creates it"
        return [Finding(name=f"work pool {name}", state="missing", found="there is none", remedy=remedy)]
    is_paused = bool(pool["is_paused"])
    workers = num_workers(api, secret, name)
    return [
        Finding(
            name=f"work pool {name}",
            state="optional" if is_paused else "ok",
            found="paused" if is_paused else "taking runs",
            remedy=f"prefect work-pool resume {name}" if is_paused else "",
        ),
        Finding(
            name=f"workers of {name}",
            state="ok" if workers else "missing",
            found=f"{workers} alive",
            remedy="" if workers else f"python -m flows.service.worker --pool {name} --limit {limit}",
        ),
    ]


def _check_mlflow(uri: str) -> list[Finding]:
    if not uri:
        return []
    if not uri.startswith(("http://", "https://")):
        return [Finding(name="MLflow", state="ok", found="a database, without a server")]
    secret = ":".join(os.environ.get(name, "") for name in MLFLOW_SECRETS) if has_mlflow_secrets(os.environ) else ""
    status, _ = ask(f"{uri}/api/2.0/mlflow/experiments/search", secret, content={"max_results": 1})
    if status != 200:
        return [_silent("MLflow", uri, status, "MLFLOW_TRACKING_URI", " and ".join(MLFLOW_SECRETS))]
    return [Finding(name="MLflow", state="ok", found=uri)]


def _silent(name: str, address: str, status: int, variable: str, secrets: str) -> Finding:
    if status in (401, 403):
        return Finding(name=name, state="missing", found=f"{address} asks for a password", remedy=f"set {secrets}")
    found = f"{address} answers with {status}" if status else f"{address} does not answer"
    return Finding(name=name, state="missing", found=found, remedy=f"start it with redream serve, or unset {variable}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
