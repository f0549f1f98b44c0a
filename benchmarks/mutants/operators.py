"""The small mistakes that are tried: mutmut's operators, applied to everything but types, docstrings and messages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import libcst as cst
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators, operator_string

# What a mutant inside would not change the behaviour of, or what tests state by a word of it.
SKIPPED = cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom | cst.Raise | cst.Assert | cst.FormattedString


@dataclass(frozen=True)
class Mutant:
    """One mistake: what stands there before and after, and how to write the whole file with it."""

    name: str  # stays the same while other lines of the file change
    line: int
    write: Callable[[], str]


def remove_call(node: cst.Expr) -> Iterator[cst.BaseSmallStatement]:
    """Leave out a statement that is a call, such as a sync or an optimiser's step."""
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def negate_condition(node: cst.If) -> Iterator[cst.If]:
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


OPERATORS = [*mutation_operators, (cst.Expr, remove_call), (cst.If, negate_condition)]


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, int]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, SKIPPED) or m.matches(node, m.Expr(m.SimpleString()) | m.Arg(keyword=m.Name("strict"))):
            return False
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                changed = list(operator(node))
                for other in changed[:1] if operator is operator_string else changed:
                    self.found.append((node, other, self.get_metadata(PositionProvider, node).start.line))
        return True


def mutants_of(source: str) -> list[Mutant]:
    """Return all mutants of a file, in an order drawn once, so that the first of them are a fair sample."""
    wrapper, finder = MetadataWrapper(cst.parse_module(source)), _Finder()
    wrapper.visit(finder)
    lines, seen, mutants = source.splitlines(), Counter(), []
    for node, other, line in finder.found:
        before, after = (_flat(wrapper.module.code_for_node(part)) for part in (node, other))
        if after.count("strict=True") < before.count("strict=True"):
            continue  # it states what only a bug can break, as assertions do
        name = f"{lines[line - 1].strip()} : {before} -> {after}"
        seen[name] += 1
        write = partial(_replaced, wrapper.module, node, other)
        mutants.append(Mutant(f"{name} #{seen[name]}" if seen[name] > 1 else name, line, write))
    random.Random(0).shuffle(mutants)
    return mutants


def _replaced(module: cst.Module, node: cst.CSTNode, other: cst.CSTNode) -> str:
    return cst.ensure_type(module.deep_replace(node, other), cst.Module).code


def _flat(code: str, limit: int = 100) -> str:
    """Return code on one line, the middle left out where it is long."""
    words = " ".join(code.split())
    return words if len(words) <= limit else f"{words[: limit // 2]} ... {words[-limit // 2 :]}"
