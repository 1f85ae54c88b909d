"""The command line here for one of nanochat, of either generation. The table is `commands.yaml`;
`docs/from-nanochat.md` is generated from it."""

import functools
import shlex
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("commands.yaml")
OFF = ("-1", "-1.0", "", "dummy")  # values by which nanochat switches a flag off
PRECISION = {"bfloat16": "bf16", "float32": "fp32"}
TASKS = {
    "ARC-Easy": "arc_easy",
    "ARC-Challenge": "arc_challenge",
    "MMLU": "mmlu",
    "GSM8K": "gsm8k",
    "HumanEval": "humaneval",
    "SpellingBee": "spelling_bee",
}


@functools.cache
def table() -> dict[str, dict[str, Any]]:
    """Script of nanochat -> `ours` (module and words), `flags` (name -> words), `why` (name ->
    reason where there are none)."""
    found = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: entry for name, entry in found.items() if not name.startswith("_")}


def translate(script: str, words: list[str]) -> tuple[str, list[str]]:
    """(the command line here, a note for each flag that has no counterpart) for `python -m SCRIPT
    WORDS…`.

    >>> translate("scripts.base_train", "-- --depth=20 --run mine --num_iterations=-1".split())
    ('python -m nanochat.train +phase=base model.depth=20 logger=wandb run_name=mine', [])
    """
    entry, given, notes = table()[script], flags(words), []
    module, *ours = entry["ours"].split(" ")
    for name, value in given:
        if name not in entry["flags"]:
            notes.append(f"{dashed(name)}: {script} has no such flag")
        elif value not in OFF:
            new = words_for(entry["flags"][name], value)
            if not new:
                notes.append(f"{dashed(name)}: {entry['why'].get(name, f'no {value} here')}")
            keys = {part.partition("=")[0] for part in new}
            ours = [part for part in ours if part.partition("=")[0] not in keys] + new
    return " ".join(["python -m", module, *ours]), notes


def words_for(template: Any, value: str) -> list[str]:
    """What a flag with this value becomes, quoted for a shell."""
    if isinstance(template, dict):
        template = template.get(value)
    if template is None:
        return []
    if template.startswith("precision="):
        value = PRECISION.get(value, value)
    elif template.startswith("evals="):
        value = ",".join(TASKS.get(name, name) for name in value.split("|"))
    return [shlex.quote(word.format(value)) for word in template.split(" ")]


def flags(words: list[str]) -> list[tuple[str, str]]:
    """(name, value) of each flag, in any spelling: --a=b, --a b, -a b; a flag alone has the value
    1.

    >>> flags(["--depth=4", "-i", "sft", "--fp8"])
    [('depth', '4'), ('i', 'sft'), ('fp8', '1')]
    """
    found: list[tuple[str, str]] = []
    waiting = None
    for word in words:
        if word.startswith("-") and len(word) > 1 and not word[1].isdecimal():
            if waiting is not None:
                found.append((waiting, "1"))
            waiting = None
            name, equals, value = word.lstrip("-").partition("=")
            if equals:
                found.append((name.replace("_", "-"), value))
            elif name:
                waiting = name.replace("_", "-")
        elif waiting is not None:
            found.append((waiting, word))
            waiting = None
    return [*found, (waiting, "1")] if waiting is not None else found


def script_for(command: str, words: list[str]) -> str | None:
    """The script of nanochat whose flags these are, typed after `python -m nanochat.COMMAND`; None
    if they are not all of one."""
    names = {name for name, _ in flags([word for word in words if word.startswith("--")])}
    fitting = [
        script
        for script, entry in table().items()
        if entry["ours"].split(" ")[0] == f"nanochat.{command}"
    ]
    phase = next(
        (word.partition("=")[2] for word in words if word.lstrip("+").startswith("phase=")), None
    )
    fitting.sort(
        key=lambda script: phase is not None and f"+phase={phase}" not in table()[script]["ours"]
    )
    return next(
        (script for script in fitting if names and names <= set(table()[script]["flags"])), None
    )


def one_line(script: str, words: list[str]) -> str:
    """The error for a command line of nanochat."""
    line, notes = translate(script, words)
    return f"that is nanochat's {script}; here: {line}" + "".join(f"; {note}" for note in notes)


def dashed(name: str) -> str:
    return f"-{name}" if len(name) == 1 else f"--{name}"


HEAD = """\
# Coming from nanochat

Every script and flag of nanochat (2025 and 2026 generation), and what to type here instead. In a
checkout of this project `python -m scripts.base_train …` prints the line for exactly those flags.
`torchrun` is not needed: `trainer=8xh100` starts the ranks. Values that switch a flag off in
nanochat (-1) are omitted. `python -m nanochat.interop.habits` generates this page."""


def habits_markdown() -> str:
    """The content of docs/from-nanochat.md."""
    lines = [HEAD]
    for script, entry in table().items():
        lines += ["", f"## {script}", "", f"`python -m {entry['ours']}`"]
        rows = []
        for name, template in entry["flags"].items():
            if isinstance(template, dict):
                ours = ", ".join(f"`{word}`" for word in template.values())
            elif template is None:
                ours = entry["why"][name]
            else:
                ours = f"`{template.replace('{}', '…')}`"
            rows.append(f"| `{dashed(name)}` | {ours} |")
        if rows:
            lines += ["", "| there | here |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parents[3] / "docs" / "from-nanochat.md").write_text(
        habits_markdown(), encoding="utf-8"
    )
