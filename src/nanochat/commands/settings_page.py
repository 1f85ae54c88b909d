"""All settings as a table of key, default, rule and meaning, for `--help` and `docs/settings.md`.

The rule comes from the type (`settings.py`), the meaning from the comment next to the value in
`conf/`. `python -m nanochat.commands.settings_page` writes `docs/settings.md`.
"""

import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanochat.commands.configs import choices, compose_command, group_names
from nanochat.commands.schema import settings_of
from nanochat.runtime.in_words import shown
from nanochat.runtime.paths import conf_dir
from nanochat.runtime.settings import SPECIAL, listed

Row = tuple[str, str, str, str]  # key, default, rule, meaning
# what a composition of nothing but the command lacks
PAGES: dict[str, list[list[str]]] = {
    "train": [[f"+phase={name}"] for name in choices("phase")],
    **{
        command: [[]]
        for command in (
            "evaluate",
            "data",
            "tokenizer",
            "sample",
            "cli",
            "chat",
            "bench",
            "import",
            "runs",
            "report",
        )
    },
}
# groups of which one is chosen, and the key of its settings in a composed config
GROUPS = {
    "data": "data",
    "task": "task",
    "reward": "rewards.NAME",
    "logger": "logger",
    "optim": "optim",
    "algo": "algo",
}

# for names that mean the same everywhere; used for a value without a comment
COMMON = {
    "lr": "learning rate",
    "betas": "decay of AdamW's running means",
    "eps": "AdamW's term against division by zero",
    "rule": "update rule",
    "weight_decay": "decay; auto: the plan's",
    "scale_width": "rate times (width / 768) ** -0.5",
    "momentum": "Muon's",
    "scale_batch": "rate times the plan's factor for the batch size",
    "beta2": "decay of Muon's second moment",
    "ns_steps": "steps of the orthogonalisation",
    "variant": "of Muon",
    "ns_dtype": "dtype of the orthogonalisation",
    "compile": "torch.compile",
    "seed": "of random numbers",
    "temperature": "0: always the most likely token",
    "split": "part of the data set",
    "top_k": "sample from this number of most likely tokens; null: all",
    "max_tokens": "of a text",
    "limit": "at most this number",
    "project": "of the tracker",
    "offline": "true: nothing is sent",
    "mirror_only": "true: never ask the hub",
    "callbacks": "further actions every N steps",
    "data": "null: the text of its run",
    "arch": "switches of the network; null: the checkpoint's",
    "name": "its name in tables and metrics",
    "dataset": "on the hub, or a folder with that name in the mirror",
    "subset": "the data set's config; null: the default one",
    "size": "conversations",
    "sequence_len": "tokens of a row",
    "ckpt": "a checkpoint or run folder, or RUN@latest, RUN@best, RUN@STEP",
    "device": "auto: the GPU if there is one",
    "precision": "of activations and products; auto: bf16 where the hardware multiplies it",
    "prompts": "beginnings of the samples",
    "num_samples": "texts for each prompt",
    "depth": "layers; the width follows from it",
    "questions": "number of questions",
    "timeout": "seconds for the answers of a step",
    "weight": "of this reward in the sum",
    "held_out": "share that only the test split has",
    "path": "a file or folder",
    "num_shards": "number of files; auto: as many as the run needs",
    "val_shard": "number of the shard for validation",
    "text_field": "column or key that holds the text",
    "document_chars": "longer documents are cut",
    "val_fraction": "share of the documents for validation",
    "revision": "a commit of the data set; null: the newest",
}


@lru_cache(maxsize=1)
def meanings() -> dict[str, str]:
    """Comment next to each value of conf/, by its key as composed; `key#file` for a file of a
    group, which takes precedence."""
    found: dict[str, str] = {}
    # a key of several commands is described in the first of them
    first = ("train.yaml", "evaluate.yaml", "data.yaml")
    for path in sorted(
        conf_dir().rglob("*.yaml"),
        key=lambda p: (p.name not in first, first.index(p.name) if p.name in first else 0, p),
    ):
        text = path.read_text(encoding="utf-8")
        group = path.relative_to(conf_dir()).parts[0] if path.parent != conf_dir() else ""
        whole = not group or "@package _global_" in text
        if group in ("experiment", "size") or (group == "trainer" and whole):
            continue  # their comments describe their own values
        stack: list[tuple[int, str]] = []
        for line in text.splitlines():
            if not (match := re.match(r"( *)([\w.]+):(?: +(.*))?$", line)):
                continue
            indent, key, rest = len(match[1]), match[2], match[3] or ""
            stack = [part for part in stack if part[0] < indent]
            comment = re.search(r"(?:^|\s)# (.*)$", rest)
            name = ".".join([*([] if whole else [group]), *(part[1] for part in stack), key])
            stack.append((indent, key))
            if comment:
                found.setdefault(name, comment[1])
                if not whole or not group:
                    found.setdefault(f"{path.stem}:{name}", comment[1])
    return found


def meaning(key: str, command: str) -> str:
    """The meaning of a setting, or "" if no file describes it."""
    known = meanings()
    # a task at any key, a reward of any name, a group of any role
    task = re.sub(
        r"^(?:data\.task|evals\.pass_at_k\.task"
        r"|(?:data\.(?:train|val)_tasks|evals\.(?:chat|tasks)\.of)\.\w+)\.",
        "task.",
        key,
    )
    reward = re.sub(r"^rewards\.\w+\.", "reward.", key)
    evaluation = re.sub(r"^evals\.(\w+)\.", r"\1:eval.", key)  # from the file of that name
    for name in (f"{command}:{key}", evaluation, key, task, reward):
        if name in known:
            return known[name]
    for prefix, file in DATACLASSES.items():
        if key.startswith(prefix) and (says := _beside(file).get(key.removeprefix(prefix))):
            return says
    return COMMON.get(key.rpartition(".")[2], "")


# dataclasses whose fields are settings: the meaning is the comment next to the field
DATACLASSES = {
    "arch.": "gpt/config.py",
    "optim.schedule.": "optim/schedules.py",
    "algo.": "rl/algorithms.py",
}


@lru_cache
def _beside(file: str) -> dict[str, str]:
    text = (Path(__file__).parents[1] / file).read_text(encoding="utf-8")
    # the formatter breaks a long line after the bracket and keeps the comment with the value
    return dict(re.findall(r"^    (\w+): .*?(?:\(\n.*?)?# (.*)$", text, re.M))


def settings_rows(command: str, words: list[str]) -> Iterator[Row]:
    """The settings of a command with these words on its command line."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(compose_command(command, words), resolve=False)
    yield from table(values, command)


def table(values: dict[str, Any], command: str) -> Iterator[Row]:
    for key, value, rule in listed(values, settings_of(command, values)):
        yield key, _default(value), rule, meaning(key, command)


def _default(value: Any) -> str:
    if value == "???":
        return "must be given"
    return "" if isinstance(value, type) else shown(value)


def show_help(command: str, words: list[str]) -> None:
    """The table on a terminal: `key=default`, then rule and meaning."""
    text = (
        (conf_dir() / f"{command}.yaml")
        .read_text(encoding="utf-8")
        .partition("\n")[0]
        .removeprefix("# ")
    )
    print(
        f"{text}\n\nSettings, as key=default: what it may be; what it means. Groups are chosen by "
        "name:"
    )
    for group in group_names():
        if command == "train" or group in ("data", "tokenizer", "model", "arch"):
            print(f"  {group}={'|'.join(choices(group))}")
    print()
    for key, default, rule, says in settings_rows(command, words):
        print(f"  {key}={default}".ljust(44) + f"  {rule}" + (f"; {says}" if says else ""))
    print(
        "\nAlso: -m for a sweep over key=a,b,c; --cfg job shows what a line composes to; "
        "debug=true shows tracebacks."
    )


HEAD = """\
# Settings

Generated by `python -m nanochat.commands.settings_page`; a test compares. Every command shows its
own settings for a given line, as `python -m nanochat.train +phase=rl --help`. A value is typed as
`key=value`; `null` switches off what may be null. A whole number may be typed as 1e6, true and
false also as yes, no, on, off."""


def settings_markdown() -> str:
    """The content of docs/settings.md."""
    lines = [HEAD]
    known: set[str] = set()
    for command, compositions in PAGES.items():
        for number, words in enumerate(compositions):
            # those of data have tables below
            found = [
                r
                for r in settings_rows(command, words)
                if not number or not (r[0] in known or r[0].startswith("data."))
            ]
            known |= {row[0] for row in found}
            if not found:
                continue
            title = f"nanochat.{command}" + "".join(f" {word}" for word in words)
            lines += ["", f"## {title}", "", *_markdown(found)]
    for group, key in GROUPS.items():
        seen: set[tuple[str, ...]] = set()
        for name in choices(group):
            found = list(_of_group(group, name, key))
            if (keys := tuple(row[0] for row in found)) not in seen:
                seen.add(keys)
                lines += ["", f"## {group}={name}", "", *_markdown(found)]
    return "\n".join(lines) + "\n"


def _of_group(group: str, name: str, key: str) -> Iterator[Row]:
    words = {
        "data": [f"+phase={'rl' if name == 'questions' else 'base'}", f"data={name}"],
        "task": ["+phase=rl", f"task={name}"],
        "algo": ["+phase=rl", f"algo={name}"],
        "reward": ["+phase=rl", "~reward@rewards.answer", f"+reward@rewards.NAME={name}"],
    }.get(group, ["+phase=base", f"{group}={name}"])
    for row in settings_rows("train", words):
        if row[0].startswith(f"{key}.") and row[0].rpartition(".")[2] not in SPECIAL:
            yield row


def _markdown(found: list[Row]) -> list[str]:
    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", "\\n")

    head = ["| key | default | may be | meaning |", "|---|---|---|---|"]
    return head + [
        f"| `{key}` | {f'`{cell(default)}`' if default else ''} | {cell(rule)} | {cell(says)} |"
        for key, default, rule, says in found
    ]


if __name__ == "__main__":
    sys.argv[1:] = []
    Path("docs").mkdir(exist_ok=True)
    Path("docs/settings.md").write_text(settings_markdown(), encoding="utf-8")
