"""Conditions on what may be retrieved, such as `faceCount < 500000 and "chair" in tags`, over columns of annotations.

The language is a part of Python's expressions, which its own parser reads and nothing ever runs: comparisons of columns
with numbers, texts and true/false, `in`, `and`, `or`, `not`, parentheses. DuckDB and Polars would take gigabytes of
other abilities along (files, network, functions) that would have to be locked away; Arrow, which the index is made of,
computes these few.

    condition   = condition "and" condition | condition "or" condition | "not" condition | "(" condition ")"
                | value comparison value {comparison value} | text "in" column | column "in" "(" value {"," value} ")"
                | column of true and false
    comparison  = "==" | "!=" | "<" | "<=" | ">" | ">="
    value       = column | number | text in quotes | "true" | "false"

Texts are compared without regard to letter case. What an asset does not state fulfils no comparison.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Bool

MAX_CHARS, MAX_DEPTH = 2_000, 50
MAX_TABLE_BYTES = 2**30
RESTRICTED = "isAgeRestricted"  # Objaverse's column
ID_NAMES = ("uid", "asset_id", "id")
_FUNCTIONS = {ast.Eq: "equal", ast.NotEq: "not_equal", ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater",
              ast.GtE: "greater_equal"}  # fmt: skip
Columns = Mapping[str, pa.ChunkedArray]


def matching(condition: str, columns: Columns) -> Bool[np.ndarray, " rows"]:
    """Return which rows fulfil a condition.

    Raises:
        ValueError: the condition cannot be read, names a column that is not there, or compares unlike things.
    """
    found = _condition(_parsed(condition), columns, condition, 0)
    return found.fill_null(False).to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else _numpy(found)


def check_condition(condition: str) -> None:
    """Raise `ValueError` if a condition cannot be read; its columns are looked at later."""
    _parsed(condition)


def read_table(path: str | Path, ids: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """Join a CSV with assets by its column `uid`, `asset_id` or `id`; an asset without a row states nothing.

    Raises:
        ValueError: there is no such file, or it is not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"table {path}: there is no such file")
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise ValueError(f"table {path} has more than the allowed {MAX_TABLE_BYTES:,} bytes")
    try:
        names = pa.csv.open_csv(path).schema.names
        id_name = next((name for name in names if name.strip().lower() in ID_NAMES), None)
        if id_name is None:
            raise ValueError(f"table {path} has no column uid, asset_id or id; it has {', '.join(names)[:200]}")
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types={id_name: pa.string()}))
    except pa.ArrowException as error:
        raise ValueError(f"table {path} cannot be read: {str(error).splitlines()[0][:200]}") from error
    rows = pc.index_in(ids, value_set=table[id_name].combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
    return {name.strip(): table[name].take(rows) for name in table.column_names if name != id_name}


def _parsed(condition: str) -> ast.expr:
    if not condition.strip() or len(condition) > MAX_CHARS:
        raise ValueError(f"a condition has 1 to {MAX_CHARS:,} characters; this one has {len(condition):,}")
    try:
        return ast.parse(condition.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ValueError(f"the condition {condition!r} cannot be read{place}; write for instance: faceCount < 500000 "
                         'and "chair" in tags') from error  # fmt: skip


def _condition(node: ast.expr, columns: Columns, text: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"the condition {text[:60]!r}… is nested more than {MAX_DEPTH} times")
    if isinstance(node, ast.BoolOp):
        function = "and_kleene" if isinstance(node.op, ast.And) else "or_kleene"
        found = _condition(node.values[0], columns, text, depth + 1)
        for other in node.values[1:]:
            found = pc.call_function(function, [found, _condition(other, columns, text, depth + 1)])
        return found
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return pc.call_function("invert", [_condition(node.operand, columns, text, depth + 1)])
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        parts = [_compared(op, a, b, columns, text) for op, a, b in zip(node.ops, sides, sides[1:], strict=False)]
        found = parts[0]
        for other in parts[1:]:
            found = pc.call_function("and_kleene", [found, other])
        return found
    value = _value(node, columns, text)
    if isinstance(value, pa.ChunkedArray) and pa.types.is_boolean(value.type):
        return value
    raise _fault(node, text, "is not a condition; compare it with something")


def _compared(op: ast.cmpop, a: ast.expr, b: ast.expr, columns: Columns, text: str) -> Any:
    if isinstance(op, ast.In | ast.NotIn):
        found = _contained(a, b, columns, text)
        return found if isinstance(op, ast.In) else pc.call_function("invert", [found])
    if type(op) not in _FUNCTIONS:
        raise _fault(a, text, "is compared by `is`; write == or !=")
    first, second = _value(a, columns, text), _value(b, columns, text)
    if not isinstance(first, pa.ChunkedArray) and not isinstance(second, pa.ChunkedArray):
        raise _fault(a, text, "and what it is compared with are both fixed; name a column")
    kinds = {_kind(first), _kind(second)}
    if len(kinds) > 1 or (kinds != {"a number"} and not isinstance(op, ast.Eq | ast.NotEq)):
        raise _fault(a, text, f"is {_kind(first)} and cannot be compared so with {_kind(second)}")
    return pc.call_function(_FUNCTIONS[type(op)], [_folded(first), _folded(second)])


def _contained(a: ast.expr, b: ast.expr, columns: Columns, text: str) -> Any:
    """Answer `"chair" in tags` and `license in ("by", "cc0")`."""
    if isinstance(b, ast.Tuple | ast.List):
        value, others = _value(a, columns, text), [_value(each, columns, text) for each in b.elts]
        if not isinstance(value, pa.ChunkedArray) or any(_kind(other) != _kind(value) for other in others):
            raise _fault(a, text, "must be a column, and all in the parentheses of its kind")
        wanted = [other.casefold() if isinstance(other, str) else other for other in others]
        found = pc.call_function("is_in", [_folded(value)], pc.SetLookupOptions(value_set=pa.array(wanted)))
        return pc.call_function("if_else", [pc.call_function("is_valid", [value]), found, pa.scalar(None, pa.bool_())])
    word, column = _value(a, columns, text), _value(b, columns, text)
    if not isinstance(word, str) or not isinstance(column, pa.ChunkedArray) or _kind(column) not in ("a text", "texts"):
        raise _fault(a, text, 'can be looked for only as a text in quotes, in a column of texts: "chair" in tags')
    if _kind(column) == "a text":
        return pc.call_function("match_substring", [column], pc.MatchSubstringOptions(word, ignore_case=True))
    lists = column.combine_chunks()
    is_same = pc.call_function("equal", [_folded(lists.flatten()), word.casefold()]).fill_null(False)
    holds = np.zeros(len(lists), bool)
    holds[pc.call_function("list_parent_indices", [lists]).to_numpy()[is_same.to_numpy(zero_copy_only=False)]] = True
    return pa.array(holds, mask=lists.is_null().to_numpy(zero_copy_only=False))


def _value(node: ast.expr, columns: Columns, text: str) -> Any:
    """Return a column, or a fixed number, text or truth."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand, columns, text)
        if isinstance(value, int | float):
            return -value
    if isinstance(node, ast.Name):
        if node.id in columns:
            return columns[node.id]
        if node.id.lower() in ("true", "false"):
            return node.id.lower() == "true"
        close = difflib.get_close_matches(node.id, list(columns), n=1, cutoff=0.0)
        hint = f"; did you mean {close[0]}? There are {', '.join(sorted(columns))[:300]}" if close else ""
        raise ValueError(f"the index has no column {node.id!r}{hint}")
    raise _fault(node, text, "is not a column, a number, a text in quotes, true or false")


def _kind(value: Any) -> str:
    if not isinstance(value, pa.ChunkedArray):
        return "true or false" if isinstance(value, bool) else "a text" if isinstance(value, str) else "a number"
    if pa.types.is_boolean(value.type):
        return "true or false"
    if pa.types.is_list(value.type):
        return "texts"
    return "a text" if pa.types.is_string(value.type) else "a number"


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return value.casefold()
    is_text = isinstance(value, pa.Array | pa.ChunkedArray) and pa.types.is_string(value.type)
    return pc.call_function("utf8_lower", [value]) if is_text else value


def _numpy(found: pa.ChunkedArray) -> Bool[np.ndarray, " rows"]:
    return found.fill_null(False).to_numpy()


def _fault(node: ast.expr, text: str, what: str) -> ValueError:
    shown = ast.get_source_segment(text.strip(), node) or text
    return ValueError(f"in the condition {text!r}: {shown} {what}")
