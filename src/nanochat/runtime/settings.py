"""The one mechanism that checks settings: every key has a type and a range, checked at composition,
before anything is built.

The settings of a command are the annotations of a class in a `schema.py`. The settings of
everything that the configs build (`_target_`) are the annotated arguments of its constructor, and
of the functions to which it passes its `**` arguments. An addition is therefore checked without
being registered.

Types are Python's, ranges are pydantic's `Annotated[int, Field(ge=1)]`. The same annotations give
the rule in errors and in the table of settings. `Field(description=…)` replaces the rule where
annotations do not suffice, and `examples` gives a value to type instead.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from nanochat.runtime.in_words import Settings, described, marks, members, refused, shown, unknown
from nanochat.runtime.paths import conf_dir

LARGEST = 2**63 - 1  # of an integer: the limit of PyTorch and NumPy
SPECIAL = ("_target_", "_partial_", "_recursive_", "_convert_")  # Hydra's own
REQUIRED = inspect.Parameter.empty

Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, le=1e4)]  # learning rate; guess: far above any that trains
Portion = Annotated[float, Field(gt=0, lt=1)]  # a share, neither none nor all
Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(ge=0, lt=1)]  # a share that can be none
# weight decay; guess: above it weights vanish in one step
Decay = Annotated[float, Field(ge=0, le=100)]
Epsilon = Annotated[float, Field(ge=0, le=1)]
Beta = Part  # of a running mean
Seed = Annotated[int, Field(ge=0)]
Workers = Annotated[int, Field(ge=0, le=1024)]  # guess: more is a typing error
# above it every token is as likely; inference/sampling.py has the lower end
Temperature = Annotated[float, Field(ge=0, le=1e6)]
TopK = Count | None
TopP = Annotated[float, Field(gt=0, le=1)] | None
MinP = Annotated[float, Field(ge=0, le=1)] | None
Penalty = Positive | None  # inference/sampling.py has the range
Ranks = Annotated[int, Field(ge=1, le=4096)]  # guess: more is a typing error


@dataclass(frozen=True)
class Built:
    """Marks a setting that is a group of arguments: those of `of`, else those of its `_target_`.

    `given` are arguments passed by the code and not by the user. `more` are settings besides the
    arguments. `each`: a group of such groups, by name. `of` may be a function that chooses the
    settings by the group's values (`chosen`): it is called with them and the group's key, and
    raises ValueError. `makes`: the class that the `_target_` is or returns; `instead`: what to
    choose where it is another.
    """

    of: str | None = None
    given: tuple[str, ...] = ()
    more: type[Settings] | None = None
    each: bool = False
    chosen: bool = False  # `of` is such a function
    null: bool = False  # null removes one of `each`
    makes: type | None = None
    instead: str = ""


class Setting(NamedTuple):
    annotation: Any
    default: Any  # REQUIRED if it has none
    passed_on: bool = False


class Wrong(ValueError):
    """Wrong settings, the first one as a line."""

    def __init__(self, lines: Sequence[str]) -> None:
        more = len(lines) - 1
        others = f" ({more} more setting{'s are' if more > 1 else ' is'} wrong)" if more else ""
        super().__init__(lines[0] + others)


T = TypeVar("T", bound=Callable[..., Any])


def passes_on(*targets: Callable[..., Any]) -> Callable[[T], T]:
    """Declares that a function passes its `**` arguments on to these targets."""

    def mark(function: T) -> T:
        function.passes_on = targets  # type: ignore[attr-defined]
        return function

    return mark


def parameters(target: Any) -> Mapping[str, Setting]:
    """The settings of a class or function: name, type, default. The first setting of a
    name wins."""
    if isinstance(target, Mapping):
        return target
    found: dict[str, Setting] = {}

    def add(function: Any, passed_on: bool) -> bool:
        """Add the arguments of one function; with `passed_on` only those that can be keywords. True
        if it passes `**` on."""
        hints, more = _hints(function), False
        for number, p in enumerate(inspect.signature(function).parameters.values()):
            if p.kind is p.VAR_KEYWORD:
                more = True
            elif p.kind is p.VAR_POSITIONAL or (number == 0 and p.name == "self"):
                continue
            elif not passed_on or p.kind is p.KEYWORD_ONLY or p.default is not REQUIRED:
                found.setdefault(p.name, Setting(hints.get(p.name, Any), p.default, passed_on))
        return more

    if isinstance(target, type) and (issubclass(target, Settings) or is_dataclass(target)):
        hints = get_type_hints(target, include_extras=True)
        if is_dataclass(target):
            return {
                f.name: Setting(hints[f.name], REQUIRED if f.default is MISSING else f.default)
                for f in fields(target)
            }
        return {
            name: Setting(hint, getattr(target, name, REQUIRED)) for name, hint in hints.items()
        }
    if isinstance(target, type):
        for number, kind in enumerate(k for k in target.__mro__ if "__init__" in vars(k)):
            if kind is object or not add(kind.__init__, number > 0):  # type: ignore[misc]
                break
    elif add(target, False):
        for other in getattr(target, "passes_on", ()):
            for name, setting in parameters(other).items():
                by_keyword = (
                    setting.passed_on
                    or setting.default is not REQUIRED
                    or _keyword_only(other, name)
                )
                if by_keyword:
                    found.setdefault(name, setting)
    return found


def _hints(function: Any) -> dict[str, Any]:
    """Types of the arguments; anything where a library names types that only a type checker
    imports."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError:
        return {
            name: hint for name, hint in function.__annotations__.items() if isinstance(hint, type)
        }


def _keyword_only(target: Any, name: str) -> bool:
    p = inspect.signature(target).parameters.get(name)
    return p is not None and p.kind is p.KEYWORD_ONLY


def check(
    values: Mapping[str, Any], target: Any, prefix: str = "", referring: Sequence[str] = ()
) -> dict[str, Any]:
    """The values converted to their types (1e9 is an integer, `no` is false). Wrong names the first
    one that does not fit.

    `referring`: keys whose value is that of another setting (`${seed}`), which is the one to name.
    """
    wrong: list[str] = []
    checked = _group(values, parameters(target), prefix, wrong)
    if wrong:
        followers = tuple(f"{key}{end}" for key in referring for end in "=.")
        raise Wrong([line for line in wrong if not line.startswith(followers)] or wrong)
    return checked


def check_fields(instance: Any, prefix: str) -> None:
    """For `__post_init__` of a frozen dataclass: check its fields and convert them to
    their types."""
    wrong: list[str] = []
    for name, setting in parameters(type(instance)).items():
        object.__setattr__(
            instance,
            name,
            _leaf(getattr(instance, name), setting.annotation, f"{prefix}.{name}", wrong),
        )
    if wrong:
        raise Wrong(wrong)


def _group(
    values: Mapping[str, Any],
    known: Mapping[str, Setting],
    prefix: str,
    wrong: list[str],
    name: str = "",
) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key in SPECIAL and "_target_" in values:
            checked[key] = value
        elif key not in known:
            wrong.append(unknown(path, known, prefix, name))
        else:
            checked[key] = _value(value, known[key].annotation, path, wrong)
    for key, setting in known.items():
        if key not in values:
            # a partial gets the rest when it is called
            if setting.default is REQUIRED and not values.get("_partial_"):
                wrong.append(f"{prefix}{key} must be given: add {prefix}{key}=…")
            elif not prefix:  # of a command: files in conf/ may omit settings with defaults
                checked[key] = setting.default
    return checked


def _groups(annotation: Any) -> tuple[type[Settings] | None, Built | None]:
    """The class of a group of settings, or how a group is built; (None, None) for a value."""
    classes = (o for o in members(annotation) if isinstance(o, type) and issubclass(o, Settings))
    built = (m for m in marks(annotation) if isinstance(m, Built))
    return next(classes, None), next(built, None)


def _value(value: Any, annotation: Any, path: str, wrong: list[str]) -> Any:
    optional = type(None) in members(annotation)
    if value is None and optional:
        return None
    group, built = _groups(annotation)
    if group is None and built is None:
        # e.g. a task among the arguments: it is built from its own settings
        if _holds_target(value):
            each = "_target_" not in value
            return _value(value, Annotated[dict, Built(each=each, null=True)], path, wrong)
        return _leaf(value, annotation, path, wrong)
    if not isinstance(value, Mapping):
        what = f"a group of settings; set one of it, as {path}.NAME=…" + (
            ", or null" if optional else ""
        )
        wrong.append(f"{path}={shown(value)} must be {what}")
        return value
    if group is not None:
        return _group(value, parameters(group), f"{path}.", wrong, path)
    assert built is not None
    if built.each:
        one: Any = Annotated[dict | None if built.null else dict, replace(built, each=False)]
        return {key: _value(item, one, f"{path}.{key}", wrong) for key, item in value.items()}
    return _built(value, built, path, wrong)


def _built(value: Mapping[str, Any], built: Built, path: str, wrong: list[str]) -> Any:
    name = str(built.of or value.get("_target_", ""))
    try:
        target = locate(name) if name else None
        if built.chosen:
            assert target is not None
            target = target(value, path)
    except ValueError as error:
        wrong.append(
            str(error)
            if built.of
            else f"{path}._target_={name}: {error}; see the files in {_examples(path)}"
        )
        return value
    if target is None:
        wrong.append(
            f"{path} has no _target_: name what it is made by, as the files in {_examples(path)} do"
        )
        return value
    if not callable(target) and not built.chosen:
        wrong.append(f"{path}._target_={name} cannot be called")
        return value
    if built.makes is not None:
        made = target if isinstance(target, type) else get_type_hints(target).get("return")
        if isinstance(made, type) and not issubclass(made, built.makes):
            wrong.append(f"{path} is a {made.__name__} here, and this phase {built.instead}")
            return value
    known = {k: s for k, s in parameters(target).items() if k not in built.given}
    if built.more is not None:
        known = {**known, **parameters(built.more)}
    return _group(
        value, known, f"{path}.", wrong, str(value.get("_target_") or name).rpartition(".")[2]
    )


def _examples(path: str) -> str:
    group = path.partition(".")[0]
    return f"conf/{group if (conf_dir() / group).is_dir() else 'phase'}/"


def locate(name: str) -> Any:
    """The object with a dotted name. ValueError if there is none."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name and ".".join(parts[:length]).startswith(error.name):
                continue
            raise ValueError(f"{name} cannot be imported ({error})") from error
        except Exception as error:
            raise ValueError(
                f"{name} cannot be imported ({type(error).__name__}: {error})"
            ) from error
        for part in parts[length:]:
            found = getattr(found, part, None)
        if found is not None:
            return found
        break
    raise ValueError("there is no object with this name")


def _holds_target(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return "_target_" in value or any(
        isinstance(v, Mapping) and "_target_" in v for v in value.values()
    )


def _leaf(value: Any, annotation: Any, path: str, wrong: list[str]) -> Any:
    try:
        checked = _adapter(annotation).validate_python(value)
    except (ValidationError, ArithmeticError):
        wrong.append(refused(path, value, annotation))
        return value
    if not _same_kind(value, checked):
        wrong.append(refused(path, value, annotation))
    return checked


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    config = ConfigDict(
        allow_inf_nan=False, coerce_numbers_to_str=True, arbitrary_types_allowed=True
    )
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:  # a type of a library that pydantic cannot check
        return TypeAdapter(Any)


def _same_kind(value: Any, checked: Any) -> bool:
    """False for values that pydantic would convert although a user cannot mean them: true or a text
    for a number, 1 for true, an integer beyond 64 bits."""
    if isinstance(checked, list | tuple) and isinstance(value, list | tuple):
        return all(map(_same_kind, value, checked))
    if isinstance(checked, Mapping) and isinstance(value, Mapping):
        return all(_same_kind(value[key], checked[key]) for key in value if key in checked)
    if isinstance(checked, bool):
        return isinstance(value, bool | str)
    if isinstance(checked, int | float):
        held = isinstance(checked, float) or abs(checked) <= LARGEST
        return not isinstance(value, bool | str) and held
    return True


def listed(
    values: Mapping[str, Any], target: Any, prefix: str = "", given: Sequence[str] = ()
) -> Iterator[tuple[str, Any, str]]:
    """Every setting of composed values as (key, value, rule), including those with a default that
    no file sets."""
    for name, setting in parameters(target).items():
        if name in given:
            continue
        path, value = f"{prefix}{name}", values.get(name, setting.default)
        yield from _listed(value, setting.annotation, path)


def _listed(value: Any, annotation: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    group, built = _groups(annotation)
    if group is None and built is None and _holds_target(value):
        built = Built(each="_target_" not in value)
    if not isinstance(value, Mapping) or (group is None and built is None):
        yield path, value, described(annotation)
    elif group is not None:
        yield from listed(value, group, f"{path}.")
    elif built is not None and built.each:
        if not value:
            yield path, value, "a group, each of it with settings of its own"
        one: Any = Annotated[dict, replace(built, each=False)]
        for key, item in value.items():
            yield from _listed(item, one, f"{path}.{key}")
    elif built is not None:
        target = locate(str(built.of or value["_target_"]))
        if built.chosen:
            target = target(value, path)
        if built.more is not None:
            known = parameters(built.more)
            for name, setting in known.items():
                yield (
                    f"{path}.{name}",
                    value.get(name, setting.default),
                    described(setting.annotation),
                )
            yield from listed(value, target, f"{path}.", given=(*built.given, *known))
        else:
            yield from listed(value, target, f"{path}.", given=built.given)
