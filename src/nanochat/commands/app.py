"""The command-line edge: composing, overrides, sweeps and errors. Elsewhere Hydra is used only to
instantiate.

A command is `main = command("train", run)`: it composes `conf/train.yaml` and calls `run(cfg)`.
Every user error ends as one line on stderr with exit code 2; `debug=true` shows the traceback
instead. Code below a command does not see `cfg`.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from nanochat.commands.configs import choices, compose_choice, group_names, register
from nanochat.commands.errors import (
    USER_ERRORS,
    missing_key,
    not_a_choice,
    of_phase,
    one_line,
    phase_of,
)
from nanochat.commands.launchers import check_launcher, is_of_launcher
from nanochat.commands.rules import change_rules
from nanochat.commands.schema import RENAMED, settings_of
from nanochat.runtime.paths import conf_dir
from nanochat.runtime.settings import check
from nanochat.runtime.signals import EndedBy, StopAtOnce, end_undisturbed, take_ctrl_c

# Settings that hold free text or a path: taken literally, without Hydra's grammar for
# commas, brackets and spaces.
TEXT_KEYS = tuple(
    (
        "start prompt system stop ckpt init_from resume out run_name data.path data.val_path "
        "tokenizer.path tokenizer_dir path store src api_key archive_dir run compare ask "
        "interpreter peer verify push"
    ).split()
)
LIST_KEYS = ("evals", "cors")  # a,b,c is a list here, not a sweep
CAN_BE_NONE = ("logger", "callbacks")  # config groups that null removes
REPEATED = {
    "chat": ("ckpt",),
    "evaluate": ("ckpt",),
    "report": ("ask",),
    "export": ("ckpt",),
}  # settings of a command that can be given several times


def command(
    config_name: str,
    run: Callable[[DictConfig], Any],
    *,
    words: Callable[[list[str]], list[str]] = list,
) -> Callable[[], Any]:
    """A command-line entry point that composes `conf/{config_name}.yaml` and calls `run(cfg)` with
    it.

    `words` may replace the typed words before Hydra reads them.
    """

    def main() -> Any:
        # with this set Hydra raises the exception instead of printing its own report, so that it
        # can be reduced to one line
        os.environ["HYDRA_FULL_ERROR"] = "1"
        take_ctrl_c()
        given = sys.argv[1:]
        typed = options_first([word for word in given if word not in ("-m", "--multirun")])
        is_sweep, debug = len(typed) < len(given), "debug=true" in given
        sys.argv[1:] = (
            sweep_words(typed)
            if is_sweep
            else listed(map(as_typed, typed), REPEATED.get(config_name, ()))
        )
        try:
            register()
            for word in typed:
                check_name(word, config_name)
            for word in () if is_sweep else typed:
                check_choice(word)
            check_flags(config_name, given)
            check_launcher(typed)
            sys.argv[1:] = words(sys.argv[1:])
            if {"--help", "-h"} & set(given):
                from nanochat.commands.settings_page import show_help

                return show_help(config_name, list(filter(is_setting, sys.argv[1:])))
            job = checked_job(config_name, run, debug)
            result = hydra.main(
                version_base="1.3", config_path=str(conf_dir()), config_name=config_name
            )(job)()
            end_undisturbed()
            return result
        except USER_ERRORS as error:
            if debug:
                raise
            stop(one_line(error, config_name))
        except RuntimeError as error:
            if debug or not is_of_launcher(error):
                raise
            stop(one_line(error, config_name))
        except (KeyboardInterrupt, StopAtOnce) as interrupt:
            stop(str(interrupt) or "interrupted", code=130)
        except EndedBy as ended:
            stop(str(ended), code=128 + ended.number)

    main.__name__ = "main"
    return main


def checked_job(
    config_name: str, run: Callable[[DictConfig], Any], debug: bool
) -> Callable[[DictConfig], Any]:
    """The function that Hydra calls with each composed config: it checks every setting, then calls
    `run`."""

    @functools.wraps(run)
    def job(cfg: DictConfig) -> Any:
        try:
            if "optim" in cfg:
                chosen = HydraConfig.get().runtime.choices["optim"]
                change_rules(
                    cfg,
                    overridden,
                    lambda name: compose_choice("optim", name),
                    chosen,
                    choices("optim"),
                )
            take_checked(cfg, config_name)
            hub = cfg.paths.hub_dir
            if hub and overridden(r"paths\.hub_dir") and not Path(hub).expanduser().is_dir():
                raise ValueError(
                    f"paths.hub_dir={hub} is not a folder; name a mirror of the hub, or null"
                )
            if hub:
                os.environ["NANOCHAT_HUB_DIR"] = hub
            return run(cfg)
        except USER_ERRORS as error:
            if debug:
                raise
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                stop(one_line(error, config_name))
            # report the failure to the sweeper, which continues with the other trials
            print(
                f"trial {HydraConfig.get().job.num} failed: {one_line(error, config_name)}",
                file=sys.stderr,
            )
            raise

    return job


def take_checked(cfg: DictConfig, config_name: str) -> None:
    """Check every setting of a composed config, and convert each to its type. ValueError names the
    first wrong one.

    Interpolations of other settings (`${seed}`) are kept.
    """
    if missing := sorted(OmegaConf.missing_keys(cfg), key=lambda key: (key != "phase", key)):
        raise ValueError(missing_key(missing[0]))
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    target = settings_of(config_name, values)
    for key in values:
        if key not in get_type_hints(target) and (phase := phase_of(key)):
            raise ValueError(of_phase(key, phase))
    for key in get_type_hints(target):
        if key not in values and key in group_names() and not hasattr(target, key):
            raise ValueError(missing_key(key))
    with open_dict(cfg):
        _keep(cfg, check(values, target, referring=list(referring(cfg))))


def referring(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """The keys whose value refers to another setting."""
    for key in map(str, node):
        child: Any = node._get_node(key)
        if child._is_interpolation():
            yield f"{prefix}{key}"
        elif isinstance(child, DictConfig) and not child._is_none():
            yield from referring(child, f"{prefix}{key}.")


def _keep(node: DictConfig, values: dict[str, Any]) -> None:
    for key, value in values.items():
        old = node._get_node(key) if key in node else None
        if old is not None and old._is_interpolation():  # type: ignore[union-attr]
            continue
        if isinstance(old, DictConfig) and not old._is_none() and isinstance(value, dict):
            _keep(old, value)
        elif isinstance(old, ListConfig) and not old._is_none() and isinstance(value, list | tuple):
            if (plain := [list(v) if isinstance(v, tuple) else v for v in value]) != list(old):
                node[key] = plain
        else:
            node[key] = value


def check_flags(config_name: str, words: list[str]) -> None:
    """ValueError for flags of nanochat's scripts, with the line to type here. Hydra's own (`--cfg`,
    `--help`) pass."""
    from nanochat.interop import habits

    if any(word.startswith("--") for word in words) and (
        script := habits.script_for(config_name, words)
    ):
        raise ValueError(habits.one_line(script, words))


def check_name(word: str, config_name: str) -> None:
    """ValueError for a setting that is typed by its earlier name."""
    key = word.partition("=")[0].lstrip("+~").rpartition("@")[2]
    for old, new in RENAMED.get(config_name, {}).items():
        if key == old or key.startswith(f"{old}."):
            raise ValueError(f"{key} was renamed to {new}{key.removeprefix(old)}")


def check_choice(word: str) -> None:
    """ValueError for a config group set to an unknown name."""
    key, equals, value = word.partition("=")
    group = key.lstrip("+").partition("@")[0]
    if (
        equals
        and group != "experiment"
        and group in group_names()
        and not re.fullmatch(r"[A-Za-z_][\w.-]*|\d+[A-Za-z][\w.-]*", value)
    ):
        raise ValueError(not_a_choice(group, value))
    if (
        equals
        and value == "null"
        and group in group_names()
        and group not in (*CAN_BE_NONE, "experiment")
    ):
        raise ValueError(not_a_choice(group, value))


def as_typed(word: str) -> str:
    """A command-line word with the value of a text setting quoted for Hydra, and the value of a
    list setting in brackets.

    >>> as_typed("start=Once, upon a time"), as_typed("evals=core,bpb")
    ("start='Once, upon a time'", 'evals=[core,bpb]')
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if name in CAN_BE_NONE and value == "null":
        return f"~{name}"
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if not equals or quoted or value in ("", "null"):
        return word
    if name in LIST_KEYS and not value.startswith("["):
        return f"{key}=[{value}]"
    if name in TEXT_KEYS and value not in ("true", "false"):
        # Hydra's grammar: in a quoted value a quote needs a backslash, and backslashes before it
        # (or at the end) are doubled
        escaped = re.sub(
            r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value
        ).replace("${", "\\${")
        return f"{key}='{escaped}'"
    return word


def is_setting(word: str) -> bool:
    """Whether a command-line word is a setting, and not an option of Hydra or its value."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def options_first(words: list[str]) -> list[str]:
    """Hydra's own options before the settings: Hydra does not accept settings on both sides of an
    option.

    >>> options_first(["model=d4", "--config-dir", "conf", "~callbacks.sample", "seed=1"])
    ['--config-dir', 'conf', 'model=d4', '~callbacks.sample', 'seed=1']
    """
    return sorted(words, key=is_setting)


def sweep_words(words: list[str]) -> list[str]:
    """The words of a sweep; a failing trial does not end it."""
    rate = "hydra.sweeper.max_failure_rate="
    searches = "hydra/sweeper=optuna" in words and not any(word.startswith(rate) for word in words)
    return ["-m", *words, *([f"{rate}1.0"] if searches else [])]


def listed(words: Iterable[str], repeated: tuple[str, ...]) -> list[str]:
    """Command-line words, with those that set one of `repeated` replaced by one word with a list of
    their values.

    >>> listed(["ckpt='a'", "port=80", "ckpt='b'"], ("ckpt",))
    ['port=80', "ckpt=['a','b']"]
    """
    values: dict[str, list[str]] = {}
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in repeated and value != "null" and not value.startswith("["):
            values.setdefault(key, []).append(value)
        else:
            rest.append(word)
    return rest + [f"{key}=[{','.join(given)}]" for key, given in values.items()]


def stop(message: str, code: int = 2) -> NoReturn:
    end_undisturbed()
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def run_dir() -> Path:
    """The folder that Hydra made for this job, for everything a command writes about itself."""
    return Path(HydraConfig.get().runtime.output_dir)


def trial_folder() -> Path | None:
    """In a sweep the folder of this trial (`runs/NAME/sweep-TIME/3`), else None: a single run names
    its own folder."""
    return run_dir() if HydraConfig.get().mode == RunMode.MULTIRUN else None


def overridden(prefix: str) -> list[str]:
    """The command-line words that set `prefix` or something below it."""
    words = [str(word).lstrip("+") for word in HydraConfig.get().overrides.task]
    return [word for word in words if re.match(rf"{prefix}[.=]", word)]
