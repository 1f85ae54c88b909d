"""Types and values of settings in words: the rule that an error gives, and the value as it would be
typed. `settings.py` checks by the same annotations."""

import difflib
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo


class Settings:
    """Base class of a group of settings: annotations are keys, values in the class are defaults."""


def marks(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, with their bounds; else the type itself."""
    bare = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if get_origin(bare) in (Union, types.UnionType):
        return [part for one in get_args(bare) for part in _alternatives(one)]
    return [annotation]


def members(annotation: Any) -> list[Any]:
    """The types of a union, without their bounds."""
    return [get_args(a)[0] if get_origin(a) is Annotated else a for a in _alternatives(annotation)]


def _bounds(annotation: Any) -> tuple[Any, dict[str, Any]]:
    bounds: dict[str, Any] = {}
    for mark in marks(annotation):
        for one in mark.metadata if isinstance(mark, FieldInfo) else (mark,):
            for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
                if getattr(one, name, None) is not None:
                    bounds[name] = getattr(one, name)
    return (get_args(annotation)[0] if marks(annotation) else annotation), bounds


def described(annotation: Any) -> str:
    """A type and its range in words.

    >>> from nanochat.runtime.settings import Beta, Field
    >>> described(Annotated[int, Field(ge=1)] | None)
    'a whole number from 1 up, or null'
    >>> described(Literal["bpe", "char"])
    'bpe or char'
    >>> described(tuple[Beta, Beta])
    'a list of 2, each a number from 0 to below 1'
    """
    if words := _words(annotation):
        return str(words.description)
    parts = _choices(annotation)
    last = (
        (", or " if any(" " in part for part in parts) else " or ") + parts[-1]
        if len(parts) > 1
        else ""
    )
    return ", ".join(parts[:-1] or parts) + last


def _choices(annotation: Any) -> list[str]:
    parts = [word for a in _alternatives(annotation) for word in _one(a)]
    return list(dict.fromkeys(parts))


def _words(annotation: Any) -> FieldInfo | None:
    return next((m for m in marks(annotation) if isinstance(m, FieldInfo) and m.description), None)


def _one(annotation: Any) -> list[str]:
    kind, bounds = _bounds(annotation)
    origin, args = get_origin(kind), get_args(kind)
    if words := _words(annotation):
        return [str(words.description)]
    if kind is type(None):
        return ["null"]
    if kind is bool:
        return ["true", "false"]
    if kind in (int, float):
        return [("a whole number" if kind is int else "a number") + _range(bounds)]
    if kind in (str, Path):
        return ["text" if kind is str else "a path"]
    if origin is Literal:
        return [shown(a) for a in args]
    if origin is tuple:
        return [f"a list of {len(args)}, each {described(args[0])}"]
    if kind is dict or (
        isinstance(origin or kind, type) and issubclass(origin or kind, Mapping | Settings)
    ):
        return ["a group of settings"]
    if isinstance(origin or kind, type) and issubclass(origin or kind, Sequence):
        return [f"a list, each of it {described(args[0])}" if args else "a list"]
    return ["anything" if kind is Any else f"a {getattr(kind, '__name__', kind)}"]


def _range(bounds: Mapping[str, Any]) -> str:
    number = {k: f"{v:,}" if isinstance(v, int) else f"{v:g}" for k, v in bounds.items()}
    low = (
        f" from {number['ge']}"
        if "ge" in number
        else f" above {number['gt']}"
        if "gt" in number
        else ""
    )
    high = (
        f" to {number['le']}"
        if "le" in number
        else f" to below {number['lt']}"
        if "lt" in number
        else ""
    )
    if low.startswith(" above") and high:
        high = (
            high.replace(" to below", " and below")
            if "lt" in number
            else f" and at most {number['le']}"
        )
    if "ge" in number and not high:
        high = " up"
    if not low and high:
        return f" below {number['lt']}" if "lt" in number else f" of at most {number['le']}"
    return low + high


def refused(path: str, value: Any, annotation: Any) -> str:
    """The error line for a value that does not fit its setting."""
    given, rule = f"{path}={shown(value)}", described(annotation)
    if words := _words(annotation):
        return f"{given} must be {words.description}" + (
            f"; try {path}={words.examples[0]}" if words.examples else ""
        )
    values = [o for o in members(annotation) if o is not type(None)]
    if all(get_origin(o) is Literal or o is bool for o in values):
        return f"{given} is not known; choose from {', '.join(_choices(annotation))}"
    if type(None) not in members(annotation) and value is None:
        return f"{given} must be {rule}, it cannot be switched off"
    near = _nearest(value, annotation)
    return f"{given} must be {rule}" + ("" if near is None else f"; try {path}={near}")


def _nearest(value: Any, annotation: Any) -> Any:
    """The bound that a number exceeds, if the bound itself is allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    for option in _alternatives(annotation):
        kind, bounds = _bounds(option)
        if kind in (int, float):
            if "ge" in bounds and value < bounds["ge"]:
                return bounds["ge"]
            if "le" in bounds and value > bounds["le"]:
                return bounds["le"]
            if kind is int and math.isfinite(value) and value != int(value):
                return round(value)
    return None


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, str):
        return value if value and value == value.strip() and not _is_number(value) else repr(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{k}:{shown(v)}' for k, v in value.items())}}}"
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def unknown(path: str, known: Mapping[str, Any], prefix: str = "", name: str = "") -> str:
    """The error line for a key that is not in `known`."""
    near = difflib.get_close_matches(path[len(prefix) :], list(known), n=1, cutoff=0.5)
    if near:
        return f"{path} is not a setting; did you mean {prefix}{near[0]}=…?"
    of = f" of {name}" if name else ""
    there = f"; there are: {', '.join(sorted(known))}" if known else ", it has none"
    return f"{path} is not a setting{of}{there}"
