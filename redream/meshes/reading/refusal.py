"""How a mesh file is refused: the readers raise `Refused`, callers see an `AssetError`."""

from __future__ import annotations

from pathlib import Path


class AssetError(ValueError):
    """A mesh file that cannot be used; the message names the file and the cause in one sentence."""


class ReaderFailed(AssetError):
    """Reading failed in passing, such as by a kill of the reader: another attempt may succeed."""


class Refused(Exception):
    """Why a mesh file cannot be used: what follows its name in a sentence."""


def refusal(path: Path, cause: str) -> AssetError:
    return AssetError(f"{one_line(path.name, 200)} {one_line(cause, 600)}.")


def one_line(text: str, max_length: int) -> str:
    """Make text from a file fit for a log: file names and JSON can hold line ends and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:max_length]
