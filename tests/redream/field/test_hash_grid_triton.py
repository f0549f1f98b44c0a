"""The Triton kernels where there is no GPU: compiled for every card, and what is said where they cannot be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from redream.field import hash_grid_triton  # noqa: E402
from redream.field.hash_grid_triton import BLOCK  # noqa: E402

COMMON = {"positions": "*fp32", "scales": "*fp32", "shapes": "*i32", "num": "i32", "num_levels": "i32"}
KERNELS = {
    "_encode_kernel": {"table": "*fp32", "features": "*fp32"},
    "_scatter_kernel": {"grad_table": "*fp32", "grad": "*fp32"},
    "_pull_back_kernel": {"table": "*fp32", "grad": "*fp32", "grad_positions": "*fp32"},
}
CARDS = [75, 80, 86, 89, 90, 100, 120]  # Turing to Blackwell; the oldest and the newest are always looked at
NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_for(capability: int, name: str) -> bytes:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(hash_grid_triton, name)
    types = COMMON | KERNELS[name]
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, {"channels": 2, "block": BLOCK})
    try:
        return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    except Exception as error:
        if "is not defined for option 'gpu-name'" in str(error):
            pytest.skip(f"triton's ptxas cannot target sm_{capability}")
        raise


def assert_no_spills(capability: int, folder: Path) -> None:
    for name in KERNELS:
        file = folder / f"{name}.cubin"
        file.write_bytes(compile_for(capability, name))
        command = [NVIDIA / "cuobjdump", "--dump-resource-usage", file]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # Registers that do not suffice are spilled to the stack, which is memory.
        assert f"Function {name}:" in usage and "REG:" in usage
        assert "STACK:0 " in usage and "LOCAL:0 " in usage, usage


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("capability", [CARDS[0], CARDS[-1]])
def test_the_kernels_compile_without_spills_for_the_oldest_and_the_newest_card(capability, tmp_path) -> None:
    assert_no_spills(capability, tmp_path)


@pytest.mark.parametrize("capability", CARDS[1:-1])
def test_the_kernels_compile_without_spills_for_every_card_in_minutes(capability, tmp_path) -> None:
    assert_no_spills(capability, tmp_path)


def test_the_number_of_points_compiles_no_kernel_again() -> None:
    for name in KERNELS:
        by_name = {parameter.name: parameter for parameter in getattr(hash_grid_triton, name).params}
        assert by_name["num"].do_not_specialize and not by_name["num"].is_constexpr


DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
"""
ASK = """
import torch
from redream.field.hash_grid import why_not_triton
torch.cuda.is_available = lambda: True
torch.nn.Module.to = lambda module, device: module  # the compiler comes before the tensors
torch.cuda._lazy_init = lambda: None
print(why_not_triton())
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    """A driver that has one GPU, for as far as Triton asks before it compiles."""
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "driver.c"]
    subprocess.run(command, check=True)
    return folder


def what_it_says(driver: Path, **environment: str) -> tuple[str, str]:
    surroundings = {**os.environ, "TRITON_LIBCUDA_PATH": str(driver), "LD_LIBRARY_PATH": str(driver), **environment}
    asked = subprocess.run([sys.executable, "-c", ASK], check=True, capture_output=True, text=True, env=surroundings)
    (line,) = asked.stdout.splitlines()
    return line, asked.stderr


def test_a_machine_without_a_compiler_is_told_to_install_one(driver, tmp_path) -> None:
    line, _ = what_it_says(driver, PATH=str(tmp_path))
    assert line == "Triton needs a C compiler; install gcc and Python's headers (python3-dev), or set CC"


def test_a_compiler_that_fails_is_named(driver) -> None:
    line, _ = what_it_says(driver, CC="/bin/false")
    assert line == "the C compiler /bin/false failed; install Python's headers (python3-dev) and a working compiler"


def test_a_cache_folder_that_cannot_be_written_is_replaced(driver, tmp_path) -> None:
    (tmp_path / "file").touch()
    line, notes = what_it_says(driver, TRITON_CACHE_DIR=str(tmp_path / "file"), CC="/bin/false")
    assert "Triton's cache folder cannot be written" in notes and "compiler" in line
