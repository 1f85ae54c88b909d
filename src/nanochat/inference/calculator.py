"""The calculator that a model may call: arithmetic and `'word'.count('x')`, as nanochat's, but
nothing is ever run (facts sheet 7.3).

Python's own parser reads the expression, so precedence, numbers and strings are exactly Python's,
and the tree is walked here with the few nodes that count. One limit bounds everything: without
powers and repeated strings no result has more digits than the expression has characters, and the
tree is no deeper. So there is no clock, no signal, no process, and it works in any thread.
"""

import ast
import math
import operator
import re
from collections.abc import Callable

# guess: the longest call in the answers of GSM8K has 30 characters; parsing 400 takes 3 ms at worst
MAX_LENGTH = 400
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
STRING = r"'[^'\\\n]*'|\"[^\"\\\n]*\""
ALLOWED = re.compile(rf"(?:[0-9+\-*/%.() ]|\.count\(|{STRING})*")


def calculate(expression: str) -> str | None:
    """The result as Python writes it (`10/4` is `2.5`, `10/5` is `2.0`), or None for anything that
    is not a calculation.

    + - * / // % ( ) on ints and decimals, and `.count` of one string in another. Commas outside
    strings are dropped, as in 1,000.

    >>> calculate("1,200 * (3 - .5)")
    '3000.0'
    """
    if len(expression) > MAX_LENGTH:
        return None
    source = re.sub(rf"({STRING})|,", r"\1", expression).strip(" ")
    if not ALLOWED.fullmatch(source):
        return None
    try:
        value = _value(ast.parse(source, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, MemoryError, RecursionError):
        # the last two: nested too deeply
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value)


def _value(node: ast.expr) -> int | float:
    """ValueError for a node that is not part of a calculation."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(left), _value(right))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as part)],
            keywords=[],
        ):
            return text.count(part)
    raise ValueError("not a calculation")
