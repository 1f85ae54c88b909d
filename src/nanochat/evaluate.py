"""Evaluate checkpoints: `python -m nanochat.evaluate ckpt=PATH evals=bpb,sample,arc_easy`.

Several, `ckpt=A ckpt=B`, make one table. `evals=` takes names of `conf/eval` and of tasks of
`conf/task` with a score. The validation text is that of the checkpoint's run (after RL, of the run
before it), unless `data=…` names another.
"""

import functools
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command, overridden
from nanochat.commands.configs import choices, compose_choice

DEFAULT = ("bpb", "sample")  # those of conf/evaluate.yaml


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """The results of each checkpoint, in the order given."""
    from nanochat.checkpoint.runs import resolve
    from nanochat.distributed.together import is_one_of_several, joined, run_again
    from nanochat.evals.evaluation import build_evaluations
    from nanochat.evals.subject import Subject
    from nanochat.runtime.paths import base_dir

    if words := overridden(r"evals\.\w+\.every"):
        raise ValueError(f"{words[0]} cannot take effect: a checkpoint is evaluated once; drop it")
    settings = settings_asked(cfg)
    evaluations = build_evaluations(settings)
    if cfg.out and (cfg.show != "items" or not cfg.out.endswith(".html")):
        raise ValueError(
            f"out={cfg.out} is the page of show=items, FILE.html; the JSONL is next to it"
        )
    ckpts = [cfg.ckpt] if isinstance(cfg.ckpt, str) else [str(ckpt) for ckpt in cfg.ckpt]
    runs = base_dir() / "runs"
    for ckpt in ckpts:  # before the evaluations are checked, which may download questions
        path = None if ckpt.startswith("hf:") else resolve(ckpt, runs, force=cfg.force)
        if cfg.overlap:
            trained_on(cfg, path)
    for evaluation in evaluations.values():
        evaluation.check()
    if cfg.processes > 1 and not is_one_of_several():
        if code := run_again(cfg.processes):
            sys.exit(code)  # a process has printed the reason
        return []
    with joined(cfg.device) as (rank, processes, device):
        text = functools.partial(validation, cfg, rank, processes)
        subjects = [
            Subject(c, text, device, cfg.precision, rank, processes, cfg.force) for c in ckpts
        ]
        found = [
            [subject.evaluated(name, one, settings[name]) for name, one in evaluations.items()]
            for subject in subjects
        ]
        first = [{"checkpoint": str(one.path), "dtype": one.dtype_and_why()} for one in subjects]
    if rank == 0:
        show(ckpts, first, found)
        if cfg.overlap:
            show_overlap(cfg, ckpts, subjects, found)
        if cfg.show == "items":
            show_items(cfg.out, ckpts, first, found)
    kept = zip(first, found, strict=True)
    return [functools.reduce(dict.__or__, [f, *(one.results for one in own)]) for f, own in kept]


def settings_asked(cfg: DictConfig) -> dict[str, Any]:
    """The settings of the evaluations, by name, with `limit` in each that has one. ValueError if
    none has."""
    settings: Any = OmegaConf.to_container(cfg.evals, resolve=True)
    settings = {name: one for name, one in settings.items() if one and one.get("of") != {}}
    if cfg.limit is not None:
        limited = [one for one in settings.values() if "limit" in one]
        if not limited:
            raise ValueError(
                f"limit={cfg.limit} cannot take effect: {', '.join(settings)} ask no questions; "
                "drop it"
            )
        for one in limited:
            one["limit"] = cfg.limit
    return settings


def show(ckpts: list[str], first: list[dict[str, Any]], found: list[list[Any]]) -> None:
    """Print the results: lines for one checkpoint, a table for several. Only numbers with matching
    passports share a row."""
    from nanochat.evals.results import differences

    alike, apart = list(first), []
    for same in zip(*found, strict=True):  # one evaluation of all checkpoints
        if unlike := differences([stored.passport for stored in same]):
            apart.append(f"{same[0].evaluation} cannot be compared: {', '.join(unlike)} differ")
            apart += [
                line
                for c, s in zip(ckpts, same, strict=True)
                for line in lines_of(s.results, f"{c}  ")
            ]
        else:
            alike = [row | stored.results for row, stored in zip(alike, same, strict=True)]
    if len(ckpts) > 1:
        show_table(ckpts, alike)
    else:
        apart = lines_of(alike[0])
    for line in [*apart, *more_lines(first, found)]:
        print(line)


def show_items(
    out: str | None, ckpts: list[str], first: list[dict[str, Any]], found: list[list[Any]]
) -> None:
    """Write every question with the answers of each checkpoint as a page, and as JSONL."""
    from nanochat.evals.results import FOLDER
    from nanochat.report.items_page import write_items_page

    page = Path(out).expanduser() if out else Path(first[-1]["checkpoint"], FOLDER, "items.html")
    items = [[item for stored in own for item in stored.items] for own in found]
    write_items_page(page, dict(zip(ckpts, items, strict=True)))
    print(f"items: {page}")


def show_overlap(
    cfg: DictConfig, ckpts: list[str], subjects: list[Any], found: list[list[Any]]
) -> None:
    """Which questions share words with the text that each checkpoint was trained on; they are kept
    next to its results."""
    import csv

    from nanochat.evals.overlap import WordRuns, lines, text_of

    for ckpt, subject, own in zip(ckpts, subjects, found, strict=True):
        items = [item for stored in own for item in stored.items]
        runs = WordRuns({(item.task, item.index): text_of(item) for item in items})
        data = trained_on(cfg, subject.path)
        flagged = runs.found_in(text for one in data for text in subject.train_texts(one))
        for line in lines(items, flagged, runs.short):
            print(line if len(ckpts) == 1 else f"{ckpt}  {line}")
        for stored in own:
            mine = {(item.task, item.index) for item in stored.items}
            place = stored.path.with_suffix(".overlap.csv")
            with place.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("task", "index"), *sorted(mine & flagged)])


def trained_on(cfg: DictConfig, checkpoint: Path | None) -> list[dict[str, Any]]:
    """The `data` of the run that a checkpoint comes from and of those before it, or that of the
    command line. ValueError if there is none."""
    from nanochat.checkpoint import folder

    if cfg.get("data"):
        return [OmegaConf.to_container(cfg.data, resolve=True)]  # type: ignore[list-item]
    found, place = [], checkpoint
    while place is not None and (place / "lineage.json").is_file():
        lineage = folder.read_lineage(place)
        data = (lineage.get("config") or {}).get("data") or {}
        found += [data] if "rows_per_device" in data else []  # questions of RL are no text
        parent = (lineage.get("parent") or {}).get("path")
        place = Path(parent) if parent else None
    if not found:
        raise ValueError(
            f"overlap=true: {checkpoint or 'a model of the hub'} does not say what it was trained "
            "on; name the text, as data=pydocs"
        )
    return found


def more_lines(first: list[dict[str, Any]], found: list[list[Any]]) -> list[str]:
    """For one checkpoint its tasks with errors and smooth numbers, for two their paired
    differences, for more the signal-to-noise of each number."""
    from nanochat.evals.comparing import noise_lines, pair_lines, task_lines
    from nanochat.evals.results import differences

    alike = [s for s in zip(*found, strict=True) if not differences([one.passport for one in s])]
    if len(found) == 1:
        return [line for [one] in alike for line in task_lines(one.items, one.results)]
    if len(found) == 2:
        return [line for a, b in alike if a.items for line in pair_lines(a.items, b.items)]
    paths = [Path(one["checkpoint"]) for one in first]
    results = [
        {k: v for one in own for k, v in one.results.items()} for own in zip(*alike, strict=True)
    ]
    items = [[item for one in own for item in one.items] for own in zip(*alike, strict=True)]
    return noise_lines(paths, results, items) if alike else []


def lines_of(results: dict[str, Any], before: str = "") -> list[str]:
    return [
        f"{before}{key}: {line:.6f}" if isinstance(line, float) else f"{before}{key}: {line}"
        for key, value in results.items()
        for line in (value if isinstance(value, list) else [value])
    ]


def show_table(ckpts: list[str], results: list[dict[str, Any]]) -> None:
    """A row for each number, a column for each checkpoint; texts below it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", box=None)
    for ckpt in ckpts:
        table.add_column(ckpt, overflow="fold")
    for key in dict.fromkeys(key for one in results for key in one):
        values = [one.get(key, "") for one in results]
        if not any(isinstance(value, list) for value in values):
            table.add_row(key, *(f"{v:.6f}" if isinstance(v, float) else str(v) for v in values))
    # no number is cut on a narrow screen
    Console(width=None if sys.stdout.isatty() else 40 * (len(ckpts) + 1)).print(table)
    for ckpt, one in zip(ckpts, results, strict=True):
        texts = {key: value for key, value in one.items() if isinstance(value, list)}
        for line in lines_of(texts, f"{ckpt}  "):
            print(line)


def named(words: list[str]) -> list[str]:
    """Replace `evals=[a,b]` by the words that Hydra composes: evaluations of conf/eval, and tasks
    in `evals.tasks.of`. ValueError for an unknown name, with the known ones.
    """
    found: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key != "evals":
            found.append(word)
            continue
        evals, tasks = [name for name in choices("eval") if name != "tasks"], choices("task")
        names = [name.strip() for name in value.strip("[]").split(",")]
        if unknown := [name for name in names if name not in (*evals, *tasks)]:
            known = [*evals, *(name for name in tasks if can_be_scored(name))]
            raise ValueError(
                f"evals={unknown[0]} is not known; choose from {', '.join(known)}; several as "
                "evals=bpb,sample"
            )
        found += [f"~eval@evals.{name}" for name in DEFAULT if name not in names]
        found += [
            f"+eval@evals.{name}={name}" for name in names if name in evals and name not in DEFAULT
        ]
        found += [f"+task@evals.tasks.of.{name}={name}" for name in names if name not in evals]
    return found


def validation(
    cfg: DictConfig, rank: int, processes: int, checkpoint: Path, tokenizer: Any, sequence_len: int
) -> Any:
    """The datamodule whose validation text a checkpoint is evaluated on."""
    from hydra.utils import instantiate

    if cfg.get("data") and "rows_per_device" not in cfg.data:
        raise ValueError(
            "data=questions has no text to judge a model by; choose another, as data=pydocs"
        )
    config: Any = (
        OmegaConf.to_container(cfg.data, resolve=True)
        if cfg.get("data")
        else validation_data(checkpoint)
    )
    rows = cfg.rows_per_device
    data = instantiate({**config, "sequence_len": sequence_len, "rows_per_device": rows})
    tokens = sequence_len * rows * processes
    data.attach(tokenizer, batch_tokens=tokens, world_size=processes, rank=rank)
    return data


def validation_data(checkpoint: Path) -> dict[str, Any]:
    """The `data` of the checkpoint's run, or of the nearest earlier run with text if that run had
    questions. ValueError if there is none.
    """
    from nanochat.checkpoint import folder

    # a model of the hub has none
    lineage = folder.read_lineage(checkpoint) if (checkpoint / "lineage.json").is_file() else {}
    data = (lineage.get("config") or {}).get("data") or {}
    if "rows_per_device" in data:
        return data
    parent = (lineage.get("parent") or {}).get("path")
    if parent and Path(parent).is_dir():
        return validation_data(Path(parent))
    raise ValueError(
        f"{checkpoint} was trained without a validation text that bpb could take; say which, as "
        "data=pydocs"
    )


def can_be_scored(name: str) -> bool:
    """Whether a task of `conf/task` has a score."""
    from hydra.utils import get_class

    return get_class(compose_choice("task", name)["_target_"]).kind != "chat"  # type: ignore[attr-defined]


main = command("evaluate", run, words=named)

if __name__ == "__main__":
    main()
