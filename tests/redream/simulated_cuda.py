"""Tensors that say `cuda` and compute on the CPU: every device mistake that a GPU would show, where there is none.

Under `SimulatedCuda` a `CudaTensor` holds a CPU (or meta) tensor with real values; forward, backward and optimisers run
on it. As on a GPU, an operation refuses tensors of two devices, a CPU's generator cannot draw on the GPU, and numpy
cannot see a tensor there. It counts what a GPU run pays for: launches, the places where the CPU waits for the GPU
(`syncs`, by the project's line), and the bytes that live at once (not what a kernel takes while it runs). To PyTorch's
C++ a `CudaTensor` is a CPU tensor, since autograd would ask a driver otherwise; so what C++ alone decides by device is
not simulated.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
ROOT = Path(__file__).parents[2]
PROJECT = tuple(f"{ROOT / package}/" for package in ("redream", "tasks", "index_build"))

# Operations that take tensors of two devices on a real GPU too.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
MAY_MIX = {aten._to_copy.default, aten.copy_.default, *INDEXING}
WAITS = {  # for the GPU's answer, as the size of the result or the result itself
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.bincount.default: "bincount",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.equal.default: "equal",
}
DRAWS = ("rand", "normal", "uniform", "bernoulli", "multinomial", "exponential", "dropout")


class DeviceMistake(RuntimeError):
    """What would fail on a GPU, or draw from its own generator."""


class CudaTensor(torch.Tensor):
    """A tensor on the simulated GPU; `inner` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CudaTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=CPU,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    device = property(lambda self: CUDA)  # pyright: ignore
    is_cuda = property(lambda self: True)  # pyright: ignore
    is_cpu = property(lambda self: False)  # pyright: ignore
    is_meta = property(lambda self: False)  # pyright: ignore

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.inner!r})"

    def __deepcopy__(self, memo: Any) -> CudaTensor:
        copy = CudaTensor(self.inner.clone())
        copy.requires_grad_(self.requires_grad)
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return restored, (self.inner.detach(), self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise DeviceMistake(f"{func} on a simulated tensor outside of the simulation")


def restored(inner: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """Rebuild a saved tensor where `torch.load`'s map_location says, which is where it was without one."""
    values = inner if _map_location == CPU else CudaTensor(inner)
    return values.requires_grad_(requires_grad)


_map_location: torch.device | None = None


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's values without the simulation noticing."""
    return tensor.inner.detach() if isinstance(tensor, CudaTensor) else tensor.detach()


class SimulatedCuda(TorchDispatchMode):
    """Simulate one GPU; enter it by `simulated_cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.syncs: Counter[str] = Counter()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._storages: dict[int, int] = {}

    # ---- what a GPU run pays for -------------------------------------------------------------------------------------

    def waits(self, why: str) -> None:
        self.syncs[f"{why} at {_place()}"] += 1

    def wrap(self, inner: torch.Tensor) -> CudaTensor:
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages[key] = size
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._forget, key)
        return CudaTensor(inner)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._storages.pop(key, 0)

    # ---- operations --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        ours = [leaf for leaf in leaves if isinstance(leaf, CudaTensor)]
        wants, name = kwargs.get("device"), str(func)
        if not ours and not is_cuda(wants):
            return func(*args, **kwargs)
        self.launches += 1
        if any(draw in name for draw in DRAWS):
            raise DeviceMistake(f"{func} draws on the GPU at {_place()}; draw on the CPU and send")
        if ours:
            self._refuse_mixed(func, leaves)
        self._count_wait(func, args, kwargs)
        result = self._compute(func, args, kwargs, any(leaf.inner.is_meta for leaf in ours))
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            return result
        if func is aten._to_copy.default and wants is not None and not is_cuda(wants) and not ours:
            return result
        wrapped = tree_map_only(torch.Tensor, lambda t: t if isinstance(t, CudaTensor) else self.wrap(t), result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)

    def _compute(self, func: Any, args: Any, kwargs: Any, is_meta: bool) -> Any:
        def unwrap(tensor: torch.Tensor) -> torch.Tensor:
            inner = tensor.inner if isinstance(tensor, CudaTensor) else tensor
            return inner.to("meta") if is_meta and not inner.is_meta else inner

        args, kwargs = tree_map_only(torch.Tensor, unwrap, (args, kwargs))
        if is_meta and func is aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()  # sizes alone are simulated: any number will do
        if is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": torch.device("meta") if is_meta else CPU}
        elif is_meta and "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("meta")}
        if "pin_memory" in kwargs:
            kwargs = {**kwargs, "pin_memory": False}
        result = func(*args, **kwargs)
        # A copy to another device never shares memory with the original.
        return result.clone() if func is aten._to_copy.default and result is args[0] else result

    def _refuse_mixed(self, func: Any, leaves: list[Any]) -> None:
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise DeviceMistake(f"{func} on the GPU has a generator of the CPU at {_place()}")
        # A CPU's scalar may join in. In the backward pass C++ fills in zeros, on the device that it believes in.
        others = [t for t in leaves if isinstance(t, torch.Tensor) and not isinstance(t, CudaTensor) and t.dim() > 0]
        is_backward = torch._C._current_graph_task_id() != -1
        if others and func not in MAY_MIX and not is_backward:
            raise DeviceMistake(f"{func} meets tensors of both cuda:0 and cpu at {_place()}")

    def _count_wait(self, func: Any, args: Any, kwargs: Any) -> None:
        if func in WAITS:
            self.waits(WAITS[func])
        elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.waits("repeat_interleave without output_size")
        elif func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.waits("boolean index")
            elif any(not isinstance(index, CudaTensor) for index in indices):
                self.waits("index of the CPU")
        elif func is aten._to_copy.default and not isinstance(args[0], CudaTensor) and not kwargs.get("non_blocking"):
            self.waits("copy to the GPU")
        elif func is aten.copy_.default and isinstance(args[0], CudaTensor) != isinstance(args[1], CudaTensor):
            self.waits("copy between devices")


class _PythonSide(TorchFunctionMode):
    """What C++ decides by the device that it believes in, before any dispatch: copies, look-ups, factories."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func in FACTORIES and is_cuda(kwargs.get("device")):
            return self._create(func, args, kwargs)
        if func is torch.Tensor.pin_memory and not isinstance(first, CudaTensor):
            return first
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda) and isinstance(first, torch.Tensor):
            return self._move(func, first, args[1:], kwargs)
        if isinstance(first, CudaTensor):
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            if func is torch.Tensor.data_ptr:
                raise DeviceMistake(f"a kernel wants a simulated tensor at {_place()}")
            if func is torch.Tensor.tolist:
                self.cuda.waits("tolist")
                inner = torch.ones_like(first.inner, device=CPU) if first.inner.is_meta else to_host(first)
                return inner.tolist()
            if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
                self.cuda.waits("index of the CPU")
                return func(first, self.cuda.wrap(torch.tensor(args[1])))
        return func(*args, **kwargs)

    def _create(self, func: Any, args: Any, kwargs: Any) -> Any:
        if "generator" in kwargs or any(draw in func.__name__ for draw in DRAWS):
            raise DeviceMistake(f"{func.__name__} draws on the GPU at {_place()}; draw on the CPU and send")
        if args and isinstance(args[0], CudaTensor):
            return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor):
            self.cuda.waits("copy to the GPU")
        self.cuda.launches += 1
        return self.cuda.wrap(func(*args, **{**kwargs, "device": CPU}).clone())

    def _move(self, func: Any, tensor: torch.Tensor, rest: Any, kwargs: Any) -> torch.Tensor:
        target = kwargs.get("device", CPU if func is torch.Tensor.cpu else CUDA if func is torch.Tensor.cuda else None)
        dtype = kwargs.get("dtype")
        for argument in rest if func is torch.Tensor.to else ():
            if isinstance(argument, torch.Tensor):
                target, dtype = argument.device, argument.dtype
            elif isinstance(argument, torch.dtype):
                dtype = argument
            elif isinstance(argument, str | torch.device | int) and not isinstance(argument, bool):
                target = torch.device("cuda", argument) if isinstance(argument, int) else torch.device(argument)
        target = tensor.device if target is None else torch.device(target)
        here, there = isinstance(tensor, CudaTensor), is_cuda(target)
        if here and there:
            return tensor if dtype in (None, tensor.dtype) else aten._to_copy(tensor, dtype=dtype)
        if here:
            self.cuda.waits("copy to the CPU")
            values = to_host(tensor) if not tensor.requires_grad else to_host(tensor).requires_grad_()
            return values.clone() if dtype is None else values.to(dtype, copy=True)
        if there:
            non_blocking = kwargs.get("non_blocking", False) or any(argument is True for argument in rest)
            return aten._to_copy(tensor, dtype=dtype, device=CUDA, non_blocking=non_blocking)
        return func(tensor, *rest, **kwargs)


FACTORIES = {
    torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.linspace,
    torch.eye, torch.rand, torch.randn, torch.randint, torch.randperm,
}  # fmt: skip


@contextmanager
def simulated_cuda() -> Iterator[SimulatedCuda]:
    """Let this process have one GPU that is none."""
    import safetensors.torch

    load, save_file = torch.load, safetensors.torch.save_file

    def load_to(*args: Any, map_location: Any = None, **kwargs: Any) -> Any:
        global _map_location
        _map_location = torch.device(map_location) if map_location is not None else None
        try:
            with torch.serialization.safe_globals([restored]):
                loaded = load(*args, map_location="cpu", **kwargs)
        finally:
            place, _map_location = _map_location, None
        if not is_cuda(place):
            return loaded
        return tree_map_only(torch.Tensor, lambda t: t if isinstance(t, CudaTensor) else cuda.wrap(t), loaded)

    def save_host(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        save_file({name: to_host(tensor).contiguous() for name, tensor in tensors.items()}, *args, **kwargs)

    cuda = SimulatedCuda()
    answers: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "synchronize": lambda _=None: cuda.waits("synchronize"),
        "get_device_capability": lambda _=None: (9, 0),
        "is_bf16_supported": lambda *_: True,
    }
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        stack.enter_context(mock.patch.object(torch, "load", load_to))
        stack.enter_context(mock.patch.object(safetensors.torch, "save_file", save_host))
        torch._C._ensureCUDADeviceGuardSet()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(cuda)
        stack.enter_context(_PythonSide(cuda))
        yield cuda


def _place() -> str:
    """Return the project's innermost line on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PROJECT):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "no line of the project"
