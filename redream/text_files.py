"""Text from anywhere: what Excel, Numbers, PowerShell and editors of three systems write, as Python's text."""

from __future__ import annotations

import codecs

# By what a file begins with. UTF-32's mark begins with UTF-16's, hence the order.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
WESTERN = "cp1252"  # of Windows in Western languages, where Excel's plain "CSV" and PowerShell 5 write it


def text_encoding(start: bytes) -> tuple[str, int]:
    """Return the encoding of a file that begins with `start`, and how many bytes its mark takes.

    UTF-16 without a mark shows by its zeros; everything else without a mark is UTF-8.
    """
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding, len(mark)
    pairs = start[: len(start) // 2 * 2]
    for encoding, zeros, others in (("utf-16-le", pairs[1::2], pairs[::2]), ("utf-16-be", pairs[::2], pairs[1::2])):
        if len(zeros) > 1 and zeros.count(0) > 0.4 * len(zeros) and 0 not in others:
            return encoding, 0
    return "utf-8", 0


def decoded_text(content: bytes) -> str:
    """Decode a whole file, its line ends as they are.

    Raises:
        ValueError: neither UTF-8 nor UTF-16 nor UTF-32.
    """
    encoding, mark = text_encoding(content[:4096])
    try:
        return content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, mark + error.start) + 1
        raise ValueError(f"line {line} is not valid {encoding.upper()}; save it as UTF-8") from None
