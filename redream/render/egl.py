"""Which of EGL's devices draws: EGL shows every GPU of a machine, whatever `CUDA_VISIBLE_DEVICES` says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch

EGL_EXTENSIONS, EGL_CUDA_DEVICE_NV = 0x3055, 0x323A  # of EGL and of its extension NV_device_cuda

Device = TypeVar("Device")


class EglKind(NamedTuple):
    """What EGL says of one of its devices; `cuda_index` counts the GPUs that CUDA shows to this process."""

    is_software: bool
    is_nvidia: bool
    cuda_index: int | None


def open_egl(width: int, height: int) -> Any:
    """Open a context on the first EGL device that gives one; `EGL_DEVICE_ID` names one by its place instead."""
    from pyrender.platforms import egl

    devices = egl.query_devices() if egl._eglQueryDevicesEXT is not None else [egl.get_default_device()]
    if asked := os.environ.get("EGL_DEVICE_ID", ""):
        if not asked.isdecimal() or int(asked) >= len(devices):
            raise ValueError(f"EGL_DEVICE_ID is {asked}, and EGL has {len(devices)} devices; leave it out to try each")
        order = [devices[int(asked)]]
    else:
        order = egl_order(devices, [_egl_kind(egl, device) for device in devices])
    failures = []
    for device in order:  # of a fenced GPU only the device is there, without the right to open it
        platform = egl.EGLPlatform(width, height, device=device)
        try:
            platform.init_context()
        except Exception as error:  # AssertionError, GLError
            failures.append(f"{device.name or 'software'}: {type(error).__name__} {error}")
        else:
            return platform
    raise RuntimeError(f"none of {len(devices)} EGL devices gives one. {'; '.join(failures)}")


def egl_order(devices: Sequence[Device], kinds: Sequence[EglKind]) -> list[Device]:
    """Order EGL's devices: the current CUDA device, other hardware, software, and last GPUs that CUDA may not see."""
    own = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    are_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")

    def rank(kind: EglKind) -> int:
        if kind.is_nvidia and are_hidden:
            return 3
        if kind.is_software:
            return 2
        return 0 if kind.cuda_index is not None and kind.cuda_index == own else 1

    return [devices[i] for i in sorted(range(len(devices)), key=lambda i: rank(kinds[i]))]


def _egl_kind(egl: Any, device: Any) -> EglKind:
    if device._display is None:  # the default one of an EGL that cannot list its devices
        return EglKind(is_software=False, is_nvidia=False, cuda_index=None)
    extensions = (egl._eglQueryDeviceStringEXT(device._display, EGL_EXTENSIONS) or b"").decode()
    index = ctypes.c_ssize_t(-1)
    is_nvidia = "EGL_NV_device_cuda" in extensions
    if is_nvidia:
        query = egl._get_egl_func("eglQueryDeviceAttribEXT", ctypes.c_uint)
        if query is None or not query(device._display, EGL_CUDA_DEVICE_NV, ctypes.byref(index)):
            index.value = -1
    return EglKind("EGL_MESA_device_software" in extensions, is_nvidia, index.value if index.value >= 0 else None)
