"""The command `redream`, with its death arranged: `python -m benchmarks.faults.killed MOMENT STAGE SECONDS generate …`.

It runs as ever and sends itself SIGKILL at a moment of a stage. Python's audit hooks tell of the folders that it makes
and the files that it renames; nothing of it is replaced, but that checkpoints come after every step and not after every
minute where `MOMENT` is `checkpoint`.

    working     SECONDS after the stage has begun, and at the latest when it publishes its output
    writing     when the first file of its output is there
    publishing  when its output is whole, with manifest, but not yet where finished outputs are
    published   when its output is there, and neither the run's record nor MLflow know it
    checkpoint  when its third checkpoint is written, but has not taken the place of the second
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

MOMENTS = ("working", "writing", "publishing", "published", "checkpoint")


def main() -> None:
    moment, stage, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    sys.argv[1:4] = []
    sys.setswitchinterval(1e-4)  # the thread that looks for files must get its turn
    sys.addaudithook(Death(moment, stage, seconds))
    from flows.cli import main as redream

    if moment == "checkpoint":
        import tasks.distillation

        tasks.distillation.CHECKPOINT_EVERY_SECONDS = 0.0
    redream()


class Death:
    """Waits in the audit hook for the moment."""

    def __init__(self, moment: str, stage: str, seconds: float) -> None:
        self._moment, self._seconds = moment, seconds
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
            time.sleep(self._seconds)
            die()
        while self._moment == "writing":
            if any(path.is_file() for path in output.rglob("*")):
                die()
            time.sleep(0.0002)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
