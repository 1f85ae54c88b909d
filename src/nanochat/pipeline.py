"""Run several commands in order under one name: `python -m nanochat.pipeline pipeline=demo`.

Each stage is a command of this project, run in a separate process. Its line is printed and could be
typed instead. Words after `--` are added to every training stage, or to the stage they
name: `… pipeline=speedrun -- trainer=1xh100 base:model=d20 chat_scores:limit=100`. Repeating the
command continues where it stopped: training stages have `resume=auto`.
"""

import shlex
import signal
import subprocess
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command
from nanochat.runtime.signals import CtrlC, EndedBy, handle_stops, restore_stops

SEPARATOR = "--"


def run(cfg: DictConfig) -> None:
    stages: Any = OmegaConf.to_container(cfg.pipeline.stages, resolve=True)
    names = list(stages)
    if cfg.start is not None and cfg.start not in names:
        raise ValueError(f"start={cfg.start} is not a stage of it; choose from {', '.join(names)}")
    for word in cfg.words:
        if stage_of(word) not in ("", *names):
            known = ", ".join(names)
            raise ValueError(f"{word} is for no stage; choose from {known}, then :key=value")
    first = names.index(cfg.start) if cfg.start else 0
    for number, name in enumerate(names[first:], first + 1):
        stage = stages[name] if isinstance(stages[name], dict) else {"run": stages[name]}
        added = added_to(name, stages[name], cfg.words)
        words = words_of(stage["run"], added, dry_run=cfg.dry_run)
        line = f"python -m nanochat.{shlex.join(words)}"
        print(f"[{number}/{len(names)}] {name}: {line}", flush=True)
        if cfg.dry_run and (why := why_not_now(words)):
            print(why)
        elif code := run_stage(words, stage.get("stdin")):
            raise ValueError(
                f"stage {name} ended with exit code {code}; its output is above. The same command "
                "continues from it"
            )


def stage_of(word: str) -> str:
    """The stage that a word applies to; empty for all.

    >>> stage_of("base:model=d4"), stage_of("seed=2"), stage_of("init_from=a:b")
    ('base', '', '')
    """
    name, colon, _ = word.partition("=")[0].partition(":")
    return name if colon else ""


def is_training(stage: Any) -> bool:
    return isinstance(stage, str) and stage.startswith("train ")


def added_to(name: str, stage: Any, words: list[str]) -> list[str]:
    """Those of `words` that are for the stage `name`.

    >>> added_to("sft", "train experiment=x", ["seed=2", "sft:max_steps=9", "base:model=d4"])
    ['seed=2', 'max_steps=9']
    """
    mine = (name, "") if is_training(stage) else (name,)
    return [word.removeprefix(f"{name}:") for word in words if stage_of(word) in mine]


def words_of(line: str, added: list[str], *, dry_run: bool = False) -> list[str]:
    """The command and its words. Only training can be tried dry, and goes on by a word."""
    words = [*shlex.split(line), *added]
    if words[0] != "train":
        return words
    return [*words, "dry_run=true" if dry_run else "resume=auto"]


def why_not_now(words: list[str]) -> str | None:
    """Why a stage cannot be planned in a dry run, or None."""
    from nanochat.checkpoint.runs import resolve
    from nanochat.commands.configs import compose_command
    from nanochat.runtime.paths import base_dir

    if words[0] != "train":
        return "not run: dry_run=true"
    parent = compose_command("train", words[1:]).get("init_from")
    try:
        if parent:
            resolve(parent, base_dir() / "runs")
    except ValueError:
        return f"planned when {parent} is there: its model and data follow from it"
    return None


def run_stage(words: list[str], lines: list[str] | None) -> int:
    """Run the command and return its exit code. A signal is forwarded and ends the pipeline after
    the stage has saved and exited (EndedBy; KeyboardInterrupt)."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"nanochat.{words[0]}", *words[1:]],
        stdin=subprocess.PIPE if lines else None,
        encoding="utf-8",
    )
    sent: list[int] = []
    ctrl_c = CtrlC()

    def forward(number: int, frame: object) -> None:
        sent.append(number)
        # a terminal has already sent Ctrl-C to the stage
        if number != signal.SIGINT or ctrl_c.again():
            process.send_signal(number)

    old = handle_stops(forward)
    try:
        process.communicate("\n".join(lines) + "\n" if lines else None)
    finally:
        restore_stops(old, stopped=bool(sent))
    if signal.SIGINT in sent:
        raise KeyboardInterrupt("interrupted; the same command continues")
    if sent:
        name = signal.Signals(sent[0]).name
        raise EndedBy(sent[0], f"{name} ended the pipeline; the same command continues")
    return process.returncode


def with_added(words: list[str]) -> list[str]:
    """The words after `--` as the setting `words`."""
    if SEPARATOR not in words:
        return words
    place = words.index(SEPARATOR)
    quoted = ", ".join("'" + word.replace("'", "\\'") + "'" for word in words[place + 1 :])
    return [*words[:place], f"words=[{quoted}]"]


def main() -> Any:
    sys.argv[1:] = with_added(sys.argv[1:])
    return command("pipeline", run)()


if __name__ == "__main__":
    main()
