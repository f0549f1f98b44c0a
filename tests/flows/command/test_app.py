"""The command as users call it: one line for a mistake, nothing but JSON on standard output with `--json`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows.command import app


def redream(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Run the command in this process, which must come to an end before it needs a server; see what it says."""
    monkeypatch.setattr(sys, "argv", ["redream", *arguments])
    monkeypatch.setattr("flows.processes.environment.start_own_server", lambda: pytest.fail("a server was started"))
    with pytest.raises(SystemExit) as ended:
        app.main()
    captured = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "x" * 20_000], "20,000 characters"),
        (["generate", "cube", "--preset", "huge"], "unknown preset"),
        (["generate", "cube", "--method", "magic"], "unknown method"),
        (["generate", "cube", "--set", "distill.speed=5"], "unknown setting"),
        (["generate", "cube", "--set", "distill.num_steps=fast"], "must be of type int"),
        (["generate", "cube", "--set", "nonsense"], "section.field=value"),
        (["generate", "cube", "--asset", "absent.glb"], "no such file"),
        (["generate", "cube", "--index", "absent"], "no index there"),
        (["generate", "cube", "--seed", "many"], "--seed"),
        (["generate", "cube", "--use", "a", "--method", "vsd"], "--use needs --method redream"),
        (["generate", "cube", "--use", "a,b", "--not", "b"], "both name b"),
        (["generate", "cube", "--assets", "-1"], "--assets"),
        (["generate", "cube", "--confirm", "--method", "sds"], "--confirm needs --method redream"),
        (["search", "cube", "--html", "absent/sheet.html"], "no such folder"),
        (["generate", "cube", "--speed", "5"], "--speed"),
        (["generate", "cube", "--device", "gpu"], "choose cpu, cuda, or one GPU"),
        (["generate", "cube", "--preset", "sd21", "--method", "sds"], "this preset needs a GPU with 14 GiB"),
        (["generate"], "prompt"),
        (["search", "\x07"], "control character"),
        (["search", "cube", "--top-k", "0"], "--top-k"),
        (["evaluate", "absent"], "no run 'absent'"),
        (["evaluate", "absent", "--set", "distill.num_steps=5"], "does not concern evaluation"),
        (["ui"], "no runs in"),
        (["index", "build", "--preset", "sd21"], "no catalog of its own"),
        (["unknown"], "unknown"),
        (["show", "absent"], "no run 'absent'"),
        (["show", "../runs"], "no run '../runs'"),
        (["rerun", "absent"], "no run 'absent'"),
        (["rerun", "absent", "--set", "x"], "section.field=value"),
        (["batch", "absent.txt"], "no such file of prompts"),
        (["batch", "absent.txt", "--seeds", "many"], "0,1,2"),
        (["show", "\x1b[31mred"], "no run"),
    ],
)
def test_mistake_costs_one_line_and_exit_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = redream(arguments, capsys, monkeypatch)
    assert code == 2
    assert out == ""
    assert err.startswith("redream: ")
    assert err.count("\n") == 1
    assert words in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "variable", "url"),
    [
        (["sync"], "MLFLOW_TRACKING_URI", "http://127.0.0.1:{port}"),
        (["sync"], "MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:{port}/mlflow"),
        (["index", "build", "--runner", "ray"], "RAY_ADDRESS", "ray://127.0.0.1:{port}"),
        (["index", "build", "--runner", "dask", "--address", "tcp://127.0.0.1:{port}"], "--address", ""),
    ],
)
def test_server_that_does_not_answer_costs_one_line_that_says_what_names_it(
    arguments: list[str],
    variable: str,
    url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and never listens
        port = probe.getsockname()[1]
        if url:
            monkeypatch.setenv(variable, url.format(port=port))
        told = [argument.format(port=port) for argument in arguments]
        code, out, err = redream([*told, "--out", str(tmp_path / "out")], capsys, monkeypatch)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"redream: {variable} names ")
    assert "does not answer (Connection refused)" in err
    assert "secret" not in err


def test_file_that_is_no_mesh_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken mesh.glb").write_bytes(b"glTF but not really")
    arguments = ["generate", "cube", "--asset", str(tmp_path / "broken mesh.glb"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("flows.requests.request.weights_path", lambda model: model)
    code, out, err = redream(arguments, capsys, monkeypatch)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "broken mesh.glb" in err
    assert not (tmp_path / "out" / ".prefect").exists()


def test_output_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("flows.requests.request.weights_path", lambda model: model)
    code, out, err = redream(["generate", "cube", "--out", str(tmp_path / "file" / "out")], capsys, monkeypatch)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be written" in err


def test_runs_of_an_empty_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redream(["runs", "--out", str(tmp_path), "--json"], capsys, monkeypatch) == (0, "[]\n", "")
    assert redream(["runs", "--out", str(tmp_path)], capsys, monkeypatch)[0] == 0


def test_runs_are_listed_as_they_are_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "run_id": "20260101-000000-a-b", "flow": "generate", "state": "finished", "prompt": "[red]a cube[/red]",
        "request": {"method": "vsd"}, "started": "2026-01-01T00:00:00+00:00", "metrics": {"clip": 0.25},
    }  # fmt: skip
    (tmp_path / "runs" / record["run_id"]).mkdir(parents=True)
    (tmp_path / "runs" / record["run_id"] / "run.json").write_text(json.dumps(record))
    _, out, _ = redream(["runs", "--out", str(tmp_path), "--json"], capsys, monkeypatch)
    assert json.loads(out) == [{**record, "folder": str(tmp_path / "runs" / record["run_id"])}]
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = redream(["runs", "--out", str(tmp_path)], capsys, monkeypatch)
    assert "[red]a cube[/red]" in out
    assert "clip 0.250" in out


def test_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.command", "--help"], capture_output=True, text=True, check=True)
    for command in (
        "generate",
        "search",
        "evaluate",
        "runs",
        "show",
        "rerun",
        "batch",
        "sync",
        "gc",
        "ui",
        "serve",
        "doctor",
        "index",
    ):
        assert command in done.stdout
