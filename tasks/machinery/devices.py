"""Which GPUs this process can use, and for each that it cannot, one sentence that says why and what to do.

A GPU counts if CUDA shows it to this process, torch has code for it, and it has the memory that the run needs; whether
an operation runs on it is tried by the process that takes its slot (`slots.py` beside this), for that reserves memory.
`REDREAM_DEVICE` (`--device`) asks for `cpu`, for `cuda`, or for one GPU such as `cuda:1`.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redream.settings import RunConfig

DEVICE = "REDREAM_DEVICE"  # environment variable
DRIVER_FILES = Path("/proc/driver/nvidia")
SMI_SECONDS = 20
SMALL_GIB = 3.0  # of a GPU's memory: the miniature's stages, or a ViT-L CLIP alone
SMALL_PRIOR_BYTES = 2**29  # of weights in a local folder; Stable Diffusion has 2.6 GB and more
FULL_SIZE_GIB = 14.0  # Stable Diffusion 2.1 with its particle; a card of "16 GB" shows 14.6 GiB or more
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}  # by CUDA's major version: NVIDIA's table of minor version compatibility
FITTING_TORCH = "uv pip install --torch-backend=auto --reinstall torch torchvision"
ON_THE_CPU = "--device cpu runs it on the CPU, where it takes weeks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU that this process can use; `index` counts those that CUDA shows to it, `uuid` is the machine's."""

    index: int
    uuid: str
    name: str
    gib: float

    def __str__(self) -> str:
        return f"GPU {self.index}, {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lack:
    """Why a GPU, or all of them, cannot be used, and what to do about it; the remedy may be empty."""

    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.found}; {self.remedy}" if self.remedy else self.found


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """The GPUs to choose from, and why not the others; without any, `lacks` says why none."""

    gpus: tuple[Gpu, ...] = ()
    lacks: tuple[Lack, ...] = ()

    def line(self) -> str:
        """Say in one line where a run computes."""
        reasons = "".join(f"; {lack}" for lack in self.lacks)
        if not self.gpus:
            return f"device: CPU{reasons}"
        if len(self.gpus) == 1:
            return f"device: {self.gpus[0]}{reasons}"
        return f"device: the first free one of {', '.join(f'{gpu.index} ({gpu.name})' for gpu in self.gpus)}{reasons}"


def asked_device() -> str:
    """Return what `REDREAM_DEVICE` says: `cpu`, `cuda`, `cuda:N`, or nothing.

    Raises:
        ValueError: it is something else.
    """
    return checked_device(os.environ.get(DEVICE, ""))


def checked_device(text: str) -> str:
    if text == "mps":
        raise ValueError(
            "--device mps: Apple's GPUs are not supported, as no test has ever run on one; --device cpu runs the mini "
            "preset in minutes"
        )
    if text and not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise ValueError(f"--device {text!r} ({DEVICE}): choose cpu, cuda, or one GPU, such as cuda:0")
    return text


def needed_gib(config: RunConfig) -> float:
    """Return how much memory a run that makes an object needs on a GPU, by the size of its prior."""
    model = config.prior.model
    if not model.startswith("mini:") and not Path(model).is_dir():
        return FULL_SIZE_GIB  # a model of the hub
    weights = Path(model).rglob("*.safetensors") if not model.startswith("mini:") else ()
    return FULL_SIZE_GIB if sum(file.stat().st_size for file in weights) > SMALL_PRIOR_BYTES else SMALL_GIB


def require_device(needed: float, broken: Mapping[str, Lack] = {}) -> Devices:
    """Return the devices of a run that needs so many GiB.

    Args:
        broken: GPUs on which nothing runs, by UUID.

    Raises:
        ValueError: there is no such GPU, and the user asked for one, or the CPU would take weeks and was not asked for.
    """
    devices, asked = find_gpus(needed, broken), asked_device()
    if devices.gpus or asked == "cpu":
        return devices
    reasons = "; ".join(str(lack) for lack in devices.lacks)
    if asked:
        raise ValueError(f"--device {asked}: {reasons}")
    if needed > SMALL_GIB:
        raise ValueError(f"this preset needs a GPU with {needed:.0f} GiB: {reasons}; {ON_THE_CPU}")
    return devices


def find_gpus(needed: float = 0.0, broken: Mapping[str, Lack] = {}) -> Devices:
    """Look for GPUs with at least `needed` GiB of memory, without reserving any of it."""
    asked = asked_device()
    if asked == "cpu":
        return Devices(lacks=(Lack(found=f"as --device or {DEVICE} says"),))
    if (lack := _why_no_cuda()) is not None:
        return Devices(lacks=(lack,))
    import torch

    gpus, lacks = [], []
    for index in range(torch.cuda.device_count()):
        found = _examine(index, needed)
        if isinstance(found, Gpu):
            found = broken.get(found.uuid, found)
        if isinstance(found, Gpu):
            gpus.append(found)
        else:
            lacks.append(found)
    if asked.startswith("cuda:"):
        number = int(asked.removeprefix("cuda:"))
        shown = ", ".join(str(gpu) for gpu in gpus) or "none"
        if not (gpus := [gpu for gpu in gpus if gpu.index == number]):
            lacks.append(Lack(found=f"there is no GPU {number} that can be used", remedy=f"those that can: {shown}"))
    return Devices(gpus=tuple(gpus), lacks=tuple(lacks))


def why_not_runs(gpu: Gpu) -> str:
    """Run an operation on a GPU; returns the first line of what went wrong, or nothing."""
    import torch

    from redream.devices import prepare_cuda

    prepare_cuda()  # this is the first operation there
    try:
        torch.cuda.set_device(gpu.index)
        result = (torch.ones(2, device=f"cuda:{gpu.index}") * 2).sum().item()
    except RuntimeError as error:
        return first_line(error)
    return "" if result == 4 else f"2 + 2 is {result} there"


def is_exclusive(trouble: str) -> bool:
    """Tell whether a GPU refuses because another process has it for itself (`nvidia-smi --compute-mode`)."""
    return "busy or unavailable" in trouble or "exclusive" in trouble


def free_memory(gpu: Gpu) -> str:
    """Say how much of a GPU's memory is free, if CUDA tells."""
    import torch

    try:
        free, total = torch.cuda.mem_get_info(gpu.index)
    except RuntimeError:
        return f"{gpu.gib:.0f} GiB"
    return f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def has_code_for(arch_list: Sequence[str], major: int, minor: int) -> bool:
    """Tell whether a build of torch runs on a GPU of this compute capability.

    Binary code (`sm_86`) runs on the same major version from its minor one on, PTX (`compute_90`) on everything later,
    and code for one architecture alone (`sm_90a`) just there.
    """
    for entry in arch_list:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", entry)
        if parts is None:
            continue
        kind, (its_major, its_minor), only = parts[1], (int(parts[2]), int(parts[3])), parts[4]
        if only == "a":
            fits = (its_major, its_minor) == (major, minor)
        elif kind == "sm" or only == "f":
            fits = its_major == major and its_minor <= minor
        else:
            fits = (its_major, its_minor) <= (major, minor)
        if fits:
            return True
    return not any(entry.startswith(("sm_", "compute_")) for entry in arch_list)  # AMD's are named otherwise


def _examine(index: int, needed: float) -> Gpu | Lack:
    import torch

    try:
        properties: Any = torch.cuda.get_device_properties(index)
    except (RuntimeError, AssertionError):
        remedy = "CUDA shows one MIG slice to a process: start one for each, with CUDA_VISIBLE_DEVICES=MIG-…"
        return Lack(found=f"GPU {index} is not shown to this process", remedy=remedy)
    gpu = Gpu(index=index, uuid=str(properties.uuid), name=properties.name, gib=properties.total_memory / 2**30)
    if not has_code_for(torch.cuda.get_arch_list(), properties.major, properties.minor):
        capability = f"sm_{properties.major}{properties.minor}"
        found = f"{gpu} ({capability}), is not supported by torch {torch.__version__}"
        return Lack(found=found, remedy=f"a build for it may exist: {FITTING_TORCH}")
    if gpu.gib < needed:
        return Lack(found=f"{gpu}, has {gpu.gib:.0f} GiB, and {needed:.0f} are needed")
    return gpu


def _why_no_cuda() -> Lack | None:
    """Say why torch sees no GPU at all; nothing if it sees one. Without a driver torch is not even imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return Lack(found="CUDA_VISIBLE_DEVICES hides all GPUs")
    if not _has_driver_library():
        names, driver = present_gpus()
        if not driver:
            return Lack(found="no GPU with a driver on this machine")
        remedy = "in a container, start it with --gpus all (Docker) or a GPU resource (Kubernetes)"
        return Lack(found=f"{names} with driver {driver} is there, but libcuda.so.1 is not", remedy=remedy)
    import torch

    with warnings.catch_warnings(action="ignore"):  # torch's own words about an old driver; ours follow
        if torch.cuda.is_available():
            return None
    names, driver = present_gpus()
    shown = f"{names} with driver {driver}" if driver else "the GPU"
    cuda = torch.version.cuda
    if cuda is None:
        return Lack(found=f"{shown} cannot be used: torch {torch.__version__} has no CUDA", remedy=FITTING_TORCH)
    oldest = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]), max(OLDEST_DRIVERS.values()))
    if driver and int(driver.partition(".")[0]) < oldest:
        found = f"{shown} cannot be used: torch {torch.__version__} needs driver {oldest} or later"
        return Lack(found=found, remedy=f"update the driver, or install a build of torch that fits it: {FITTING_TORCH}")
    return Lack(found=f"{shown} cannot be used: {_cuda_error()}", remedy="nvidia-smi may say more")


def _cuda_error() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "torch finds no device"


def _has_driver_library() -> bool:
    """Tell whether torch could find a driver: it opens the same file by the same rules."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # torch itself must say; AMD's driver has this device
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def present_gpus() -> tuple[str, str]:
    """Return the names of NVIDIA's GPUs on this machine and the driver's version, whether torch can use them or not."""
    try:
        text = (DRIVER_FILES / "version").read_text()
        version = re.search(r"Module\s+(?:for\s+\S+\s+)?(\d+\.[\d.]+)", text)
        files = sorted(DRIVER_FILES.glob("gpus/*/information"))
        models = [re.search(r"Model:\s*(.+)", file.read_text(errors="replace")) for file in files]
        if version is not None:
            return ", ".join(model[1].strip() for model in models if model) or "an NVIDIA GPU", version[1]
    except OSError:
        pass
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return "", ""
    rows = [line.partition(", ") for line in done.stdout.splitlines() if ", " in line]
    return ", ".join(name.strip() for _, _, name in rows), rows[0][0] if rows else ""
