"""The doctor tells what is there, what is missing, and what to do about it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows.command import doctor
from tests.flows.services import Served, free_port


def test_every_lack_comes_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenGL is asked in a process of its own, which takes seconds; its test is below.
    monkeypatch.setattr(doctor, "check_gl", doctor.check_scann)
    findings = doctor.examine(tmp_path)
    names = {"machine", "GPU", "ScaNN", "tiny-cuda-nn", "orchestration", "mini weights", "sd21 weights", "servers"}
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
    assert doctor.check_real_weights().state == "optional"
    (tmp_path / "models--sd2-community--stable-diffusion-2-1-base").mkdir()
    assert doctor.check_real_weights().state == "ok"


def test_machine_without_opengl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    error = "Traceback …\nredream.render.mesh.RendererUnavailable: no OpenGL context by egl\n"
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr=error)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: failed)
    finding = doctor.check_gl()
    assert finding.state == "missing"
    assert finding.found == "no OpenGL context by egl"
    assert "install" in finding.remedy


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
