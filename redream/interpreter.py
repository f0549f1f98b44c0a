"""Python processes that import our modules, whatever is called `flows`, `tasks` or `random` in the working directory.

`python -m` and `python -c` put the working directory first on the path of imports, and so does an empty or relative
entry of `PYTHONPATH`. A folder `flows`, Prefect's own convention, would be imported in place of ours, and run.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])  # holds redream, index_build, tasks and flows


def python_command(*arguments: str) -> list[str]:
    """Return a command that runs this interpreter without the working directory on its path."""
    return [sys.executable, "-P", *arguments]


def import_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose Python processes, and theirs, import the modules that this process has.

    Our own folder comes first unless it is installed, where site-packages has its usual place. Entries of `PYTHONPATH`
    stay, relative ones as absolute paths, but for those that are the working directory because they are empty or ".".
    """
    entries = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [os.path.abspath(entry) for entry in entries if os.path.isabs(entry) or not _is_here(entry)]
    if ROOT not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        kept = [ROOT, *kept]
    path = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(kept))} if kept else {}
    others = {name: text for name, text in environment.items() if name != "PYTHONPATH"}
    return {**others, **path, "PYTHONSAFEPATH": "1"}


def keep_imports_ours() -> None:
    """Give this process the environment of `import_environment`, and so every process that it starts."""
    environment = import_environment(os.environ)
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(environment)


def _is_here(entry: str) -> bool:
    return os.path.realpath(entry) == os.path.realpath(".")
