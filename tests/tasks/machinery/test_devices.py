"""Which GPUs count, why not the others in one sentence each, and what is refused before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from redream.presets import mini, sd21
from tasks.machinery import devices
from tasks.machinery.devices import (
    DEVICE,
    FULL_SIZE_GIB,
    SMALL_GIB,
    find_gpus,
    has_code_for,
    needed_gib,
    require_device,
)
from tests.tasks.machinery.faked_cards import Card, fake_cards

SMALL = Card("NVIDIA T400 4GB", 3.8, (7, 5))
OLD = Card("Tesla P100-PCIE-16GB", 15.9, (6, 0))
MIG = Card("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8)


def sentences(needed: float = 0.0) -> list[str]:
    return [str(lack) for lack in find_gpus(needed).lacks]


@pytest.mark.parametrize(
    ("arch_list", "capability", "runs"),
    [
        (["sm_75", "sm_80"], (7, 5), True),
        (["sm_75", "sm_80"], (7, 0), False),
        (["sm_75", "sm_80"], (8, 9), True),  # binary code of an earlier minor version
        (["sm_86"], (8, 0), False),
        (["sm_90"], (12, 0), False),
        (["sm_75", "compute_75"], (12, 0), True),  # PTX, which the driver compiles
        (["compute_90"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),  # code for one architecture alone
        (["sm_100f"], (10, 3), True),
        (["gfx90a"], (9, 0), True),  # AMD's
    ],
)
def test_card_counts_if_torch_has_code_that_it_runs(
    arch_list: list[str], capability: tuple[int, int], runs: bool
) -> None:
    assert has_code_for(arch_list, *capability) is runs


def test_old_and_small_cards_are_left_out_with_a_sentence_each(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [OLD, SMALL, Card()])
    assert [gpu.index for gpu in find_gpus(FULL_SIZE_GIB).gpus] == [2]
    old, small = sentences(FULL_SIZE_GIB)
    assert "GPU 0, Tesla P100-PCIE-16GB (sm_60), is not supported by torch 2.15.0+cu132" in old
    assert small == "GPU 1, NVIDIA T400 4GB, has 4 GiB, and 14 are needed"
    assert [gpu.index for gpu in find_gpus(SMALL_GIB).gpus] == [1, 2]


def test_slices_that_cuda_does_not_show_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [MIG, MIG, MIG], num_shown=1)
    assert len(find_gpus().gpus) == 1
    assert len(sentences()) == 2
    assert "CUDA_VISIBLE_DEVICES=MIG-" in sentences()[0]


@pytest.mark.parametrize(
    ("version", "cuda", "words"),
    [
        ("535.104.05", "13.2", ("NVIDIA A100-SXM4-40GB with driver 535.104.05", "needs driver 580", "--torch-backend")),
        ("580.65.06", None, ("driver 580.65.06", "torch 2.15.0+cu132 has no CUDA", "--torch-backend=auto")),
        ("580.65.06", "13.2", ("driver 580.65.06", "cannot be used: no CUDA-capable device is detected")),
    ],
)
def test_gpu_that_torch_cannot_use_is_named_with_its_driver(
    version: str, cuda: str | None, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(monkeypatch, [], version__cuda=cuda)
    write_driver(tmp_path, monkeypatch, version)
    (sentence,) = sentences()
    assert all(part in sentence for part in words)
    assert "\n" not in sentence


def test_driver_without_its_libraries_is_a_container_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cards(monkeypatch, [])
    monkeypatch.setattr(devices, "_has_driver_library", lambda: False)
    write_driver(tmp_path, monkeypatch, "580.65.06")
    assert "--gpus all" in sentences()[0]
    monkeypatch.setattr(devices, "DRIVER_FILES", tmp_path / "absent")
    monkeypatch.setenv("PATH", "")
    assert sentences() == ["no GPU with a driver on this machine"]


def write_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Write what the kernel module says of itself and of its cards."""
    card = folder / "gpus" / "0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ: 121\n")
    text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (builder)\n"
    (folder / "version").write_text(text)
    monkeypatch.setattr(devices, "DRIVER_FILES", folder)


def test_hidden_cards_and_the_cpu_that_was_asked_for_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [Card()])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpus().line() == "device: CPU; CUDA_VISIBLE_DEVICES hides all GPUs"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert find_gpus().line() == "device: GPU 0, NVIDIA H100 80GB HBM3"
    monkeypatch.setenv(DEVICE, "cpu")
    assert find_gpus().line().startswith("device: CPU; as --device")


def test_one_card_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [Card(), SMALL])
    monkeypatch.setenv(DEVICE, "cuda:1")
    assert [gpu.index for gpu in require_device(SMALL_GIB).gpus] == [1]
    with pytest.raises(ValueError, match=r"--device cuda:1: .*has 4 GiB.*no GPU 1 that can be used"):
        require_device(FULL_SIZE_GIB)
    for text in ("gpu", "cuda:", "cuda:-1", "1", "CPU"):
        monkeypatch.setenv(DEVICE, text)
        with pytest.raises(ValueError, match="choose cpu, cuda, or one GPU"):
            find_gpus()


def test_full_size_prior_needs_a_gpu_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [SMALL])
    assert needed_gib(sd21()) == FULL_SIZE_GIB
    with pytest.raises(ValueError, match="NVIDIA T400 4GB, has 4 GiB, and 14 are needed; --device cpu runs it"):
        require_device(needed_gib(sd21()))
    assert require_device(needed_gib(mini())).gpus
    monkeypatch.setenv(DEVICE, "cpu")
    assert not require_device(needed_gib(sd21())).gpus
