"""The command `redream`, with its death arranged: `python -m benchmarks.faults.killed MOMENT WHERE AMOUNT COMMAND …`.

It runs as ever and sends itself SIGKILL at a moment of a stage, or of a file in its run's folder. Python's audit hooks
tell of the folders that it makes and the files that it renames and links; nothing of it is replaced, but that
checkpoints come after every step and not after every minute where `MOMENT` is `checkpoint`.

    working     AMOUNT seconds after the stage WHERE has begun, and at the latest when it publishes its output
    writing     when AMOUNT files of its output are there; lives on where they come too fast to be seen
    publishing  when its output is whole, with manifest, but not yet where finished outputs are
    published   when its output is there, and neither the run's record nor MLflow know it
    checkpoint  when its third checkpoint is written, but has not taken the place of the second
    delivering  when the file WHERE is written, but does not have its name yet
    recording   when the file WHERE has its name, and the run's record does not know it yet
    tracking    when the file WHERE is about to be handed over to MLflow
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

OF_FILES = ("delivering", "recording", "tracking")


def main() -> None:
    moment, where, amount = sys.argv[1], sys.argv[2], float(sys.argv[3])
    sys.argv[1:4] = []
    sys.setswitchinterval(1e-4)  # the thread that looks for files must get its turn
    sys.addaudithook(FileDeath(moment, where) if moment in OF_FILES else StageDeath(moment, where, amount))
    from flows.command.app import main as redream

    if moment == "checkpoint":
        import tasks.distillation

        tasks.distillation.CHECKPOINT_EVERY_SECONDS = 0.0
    redream()


class StageDeath:
    """Waits in the audit hook for a moment of a stage."""

    def __init__(self, moment: str, stage: str, amount: float) -> None:
        self._moment, self._amount = moment, amount
        self._partial = f"/store/partial/{stage}/"
        self._has_begun = False
        self._num_checkpoints = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("os.mkdir", "os.rename", "shutil.rmtree"):
            return
        path = str(arguments[0])
        if self._partial not in path:
            return
        if event == "os.mkdir" and path.endswith("/output") and not self._has_begun:
            self._has_begun = True
            threading.Thread(target=self._watch, args=[Path(path)], daemon=True).start()
        elif event == "os.rename" and path.endswith("/output") and self._moment in ("working", "publishing"):
            die()
        elif event == "os.rename" and path.endswith("state.pt.part") and self._moment == "checkpoint":
            self._num_checkpoints += 1
            if self._num_checkpoints == 3:
                die()
        elif event == "shutil.rmtree" and self._moment == "published" and "/" not in path.partition(self._partial)[2]:
            die()  # it tidies up what is left beside the output

    def _watch(self, output: Path) -> None:
        if self._moment == "working":
            time.sleep(self._amount)
            die()
        while self._moment == "writing":
            if sum(path.is_file() for path in output.rglob("*")) >= self._amount:
                die()
            time.sleep(0.0002)


class FileDeath:
    """Waits in the audit hook for a moment of a file in the run's folder."""

    def __init__(self, moment: str, name: str) -> None:
        self._moment, self._name = moment, name
        self._is_there = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("os.rename", "os.link"):
            return
        source, target = Path(str(arguments[0])), Path(str(arguments[1]))
        if event == "os.link":
            if self._moment == "tracking" and source.name == self._name and source.parent.parent.name == "runs":
                die()
        elif target.parent.parent.name == "runs":
            if target.name == self._name and self._moment == "delivering":
                die()
            if target.name == "run.json" and self._is_there and self._moment == "recording":
                die()
            self._is_there = self._is_there or target.name == self._name


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
