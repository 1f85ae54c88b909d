"""Errors of Hydra, OmegaConf, the file system and unknown settings in one line, with
what to type instead."""

import difflib
import errno
import os
import re
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

from nanochat.commands.configs import choices, compose_command, group_names, known_keys
from nanochat.commands.launchers import not_installed
from nanochat.runtime.paths import base_dir

USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException, ImportError)


def one_line(error: BaseException, config_name: str = "train") -> str:
    """The error and its remedy in one line, from the innermost cause: Hydra wraps what a class
    raised."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
    ):
        place = Path(str(error.filename or "")).absolute()
        if place.is_relative_to(base_dir()) or base_dir().is_relative_to(place):
            why = os.strerror(error.errno).lower()
            return (
                f"{base_dir()} cannot be written to ({why}: {place}); set NANOCHAT_BASE_DIR to "
                "another folder, or correct its permissions"
            )
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    if (
        match := re.match(r"Error merging override \+*(\S+)", text)
    ) and error.__cause__ is not None:
        cause = str(error.__cause__).splitlines()[0]
        typed = text.removeprefix("Error merging override ")
        if match := re.search(r"could not be converted to (\w+)", cause):
            return f"{typed} is not of type {match[1].lower()}"
        return f"{typed}: {cause}"
    if match := re.search(r"^([\w@.]+) appears more than once in the final defaults list", text):
        # a phase brings evaluations, and Hydra names the first duplicate
        twice = "phase" if match[1].startswith("eval@") else match[1]
        return f"{twice} is chosen twice: the experiment sets it already; drop +{twice}=…"
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match.group(1), config_name)
    if match := re.search(r"Could not find '(hydra/\w+)/([^']+)'", text):
        return not_installed(match[1], match[2])
    if match := re.search(r"Could not find '(\w+)/([^']+)' Available options in '[^']+': .*", text):
        return not_a_choice(match[1], match[2])
    if (match := re.search(r"Interpolation key '(\w+)' not found.* full_key: (\w+)", text)) and (
        phase := phase_of(match[1])
    ):
        return (
            f"this {match[2]} takes {match[1]}, a setting of phase {phase}; add +phase={phase}, or "
            f"choose another {match[2]}=…"
        )
    if match := re.search(r"Error trying to access (\S+): node `(\w+)` is not a container", text):
        return f"{match[2]} must be a group of settings; set one of it, as {match[1]}=…"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return missing_key(match.group(1))
    return text.removesuffix(
        " See https://hydra.cc/docs/1.2/upgrades/1.0_to_1.1/changes_to_package_header for more "
        "information."
    )


def unknown_key(key: str, config_name: str) -> str:
    known = known_keys(config_name)
    top = key.partition(".")[0]
    if config_name == "train" and top not in known and (phase := phase_of(top)):
        return of_phase(key, phase)
    if key in known or (top in known and not any(k.startswith(f"{top}.") for k in known)):
        return missing_key(key) if key in group_names() else f"{key} is not a setting of this run"
    # lr=0.1: that of some group
    same = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        return f"{key} is not a setting; see `python -m nanochat.{config_name} --help`"
    more = (
        f" ({len(same)} settings are called {same[0].rpartition('.')[2]})" if len(same) > 1 else ""
    )
    return f"{key} is not a setting; did you mean {near[0]}=…?{more}"


def of_phase(key: str, phase: str) -> str:
    return f"{key} is a setting of phase {phase}; add +phase={phase}, or drop it"


def phase_of(key: str) -> str | None:
    """The phase that brings the setting `key`, None if none does."""
    found = (
        name for name in choices("phase") if key in compose_command("train", [f"+phase={name}"])
    )
    return next(found, None)


def missing_key(key: str) -> str:
    if key in group_names():
        plus = "+" if key in ("phase", "task") else ""  # the other groups have a default choice
        return f"no {key} was chosen; add {plus}{key}=NAME, one of: {', '.join(choices(key))}"
    group = key.rpartition(".")[2]
    if group in group_names():
        return f"{key} must be given: add +{group}@{key}=NAME, one of: {', '.join(choices(group))}"
    return f"{key} must be given: add {key}=…"


def not_a_choice(group: str, value: str) -> str:
    depth = re.fullmatch(r"d(\d+)", value) if group == "model" else None
    if depth:
        there = ", ".join(choices(group))
        return (
            f"model={value} is not known; model.depth={depth[1]} makes a model of any depth. There "
            f"are: {there}"
        )
    return f"{group}={value} is not known; choose from: {', '.join(choices(group))}"
