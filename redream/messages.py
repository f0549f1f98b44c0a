"""What went wrong, in words for a user: one line, without the names of Python's classes."""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CHARS = 300
_CLASS = r"(?:\w+\.)*\w*(?:Error|Exception|Timeout|Refused|Failure|Warning|Interrupt)\w*"
_RAISED = re.compile(rf"{_CLASS}: (?P<words>.*\S.*)")  # as a traceback ends
_NAMED = re.compile(rf"\({_CLASS}\) ")  # as SQLAlchemy names what its driver raised
_OF_AN_OBJECT = re.compile(r"\w+\(.*\): (?=\S)")  # as urllib3 names its pool of connections


def reason(error: BaseException) -> str:
    """Return why something failed: the system's own word where one is behind it, else the error's first line."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return f"{cause.strerror}: {cause.filename}" if cause.filename else cause.strerror
    for cause in _causes(error):
        if isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__:
            return "no answer in time"
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return _plain(line) or "it does not say why"


def last_words(text: str) -> str:
    """Return the last line that a process said, or what its traceback ends in."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [match["words"] for line in lines if (match := _RAISED.fullmatch(line))]
    return _plain(raised[-1] if raised else lines[-1]) if lines else "it said nothing"


def _plain(line: str) -> str:
    return _OF_AN_OBJECT.sub("", _NAMED.sub("", line)).strip()[:MAX_CHARS]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, down to the first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
