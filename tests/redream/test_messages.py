"""What went wrong is said in words: no class of Python's, and the system's own word where there is one."""

from __future__ import annotations

import pytest

from redream.messages import last_words, reason

SQL = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
sqlite3.OperationalError: unable to open database file

The above exception was the direct cause of the following exception:

sqlalchemy.exc.OperationalError: (sqlite3.OperationalError) unable to open database file
(Background on this error at: https://sqlalche.me/e/20/e3q8)
"""


@pytest.mark.parametrize(
    ("said", "last"),
    [
        (SQL, "unable to open database file"),
        ("starting\nPermissionError: [Errno 13] Permission denied: '/x'\n", "[Errno 13] Permission denied: '/x'"),
        ("note: one\nport 4200 is taken\n\n", "port 4200 is taken"),
        ("", "it said nothing"),
    ],
)
def test_the_last_words_of_a_process_name_no_class(said: str, last: str) -> None:
    assert last_words(said) == last


def test_a_reason_is_the_systems_word_behind_whatever_wraps_it() -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    wrapped = RuntimeError("HTTPConnectionPool(host='127.0.0.1', port=1): Max retries exceeded")
    wrapped.__cause__ = refused
    assert reason(wrapped) == "Connection refused"
    assert reason(FileNotFoundError(2, "No such file or directory", "a.db")) == "No such file or directory: a.db"
    assert reason(TimeoutError()) == "no answer in time"
    assert reason(ValueError("(sqlite3.OperationalError) no such table\nmore")) == "no such table"
    assert reason(RuntimeError()) == "it does not say why"
