"""Files that survive a power cut: written aside, on the disk before they are renamed, and their folder after it."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path | str) -> None:
    """Wait until the disk has a file's content, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put_in_place(aside: Path | str, path: Path | str) -> None:
    """Rename a file that was written aside, in place of the one that may be there.

    The disk has the content before the rename and the rename before this returns, so whoever looks later finds the old
    file or the whole new one.
    """
    sync(aside)
    os.replace(aside, path)
    sync(Path(path).parent)
