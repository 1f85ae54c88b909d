"""Evaluate checkpoints: `python -m nanochat.evaluate ckpt=PATH evals=bpb,sample,arc_easy`.

Several, `ckpt=A ckpt=B`, make one table. `evals=` takes names of `conf/eval`, and of tasks of
`conf/task` that can be scored. The validation text is that of the run the checkpoint comes from
(after RL, of the run before it), unless `data=…` names another.
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command, overridden
from nanochat.commands.configs import choices, compose_choice

DEFAULT = ("bpb", "sample")  # those of conf/evaluate.yaml


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """The results of each checkpoint, in the order given."""
    from nanochat.evals.evaluation import build_evaluations

    if words := overridden(r"evals\.\w+\.every"):
        raise ValueError(f"{words[0]} cannot take effect: a checkpoint is evaluated once; drop it")
    settings: Any = OmegaConf.to_container(cfg.evals, resolve=True)
    evaluations = build_evaluations(settings)
    for evaluation in evaluations.values():
        evaluation.check()
    ckpts = [cfg.ckpt] if isinstance(cfg.ckpt, str) else [str(ckpt) for ckpt in cfg.ckpt]
    results = [evaluated(cfg, ckpt, evaluations) for ckpt in ckpts]
    if len(ckpts) == 1:
        for key, value in results[0].items():
            for line in value if isinstance(value, list) else [value]:
                print(f"{key}: {line:.6f}" if isinstance(line, float) else f"{key}: {line}")
    else:
        show_table(ckpts, results)
    return results


def evaluated(cfg: DictConfig, ckpt: str, evaluations: dict[str, Any]) -> dict[str, Any]:
    from nanochat.checkpoint.opened import open_checkpoint
    from nanochat.evals.evaluation import Context

    opened = open_checkpoint(ckpt, device=cfg.device, precision=cfg.precision)
    dtype = str(opened.dtype).removeprefix("torch.")
    results: dict[str, Any] = {"checkpoint": str(opened.path), "dtype": f"{dtype} ({opened.why})"}
    context = Context(opened.gpt, opened.tokenizer, lambda: validation(cfg, opened))
    for evaluation in evaluations.values():
        results.update(evaluation(context))
    return results


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
    # no number is cut where the screen is narrow
    Console(width=None if sys.stdout.isatty() else 40 * (len(ckpts) + 1)).print(table)
    for ckpt, one in zip(ckpts, results, strict=True):
        for key, value in one.items():
            for line in value if isinstance(value, list) else []:
                print(f"{ckpt}  {key}: {line}")


def named(words: list[str]) -> list[str]:
    """The command-line words with `evals=[a,b]` as what Hydra composes: evaluations of conf/eval, tasks among `evals.tasks.of`.

    ValueError names one that is not known, and those that are.
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
                f"evals={unknown[0]} is not known; choose from {', '.join(known)}; several as evals=bpb,sample"
            )
        found += [f"~eval@evals.{name}" for name in DEFAULT if name not in names]
        found += [
            f"+eval@evals.{name}={name}" for name in names if name in evals and name not in DEFAULT
        ]
        found += [f"+task@evals.tasks.of.{name}={name}" for name in names if name not in evals]
    return found


def validation(cfg: DictConfig, opened: Any) -> Any:
    """The datamodule whose validation text a checkpoint is judged by."""
    from hydra.utils import instantiate

    if cfg.get("data") and "rows_per_device" not in cfg.data:
        raise ValueError(
            "data=questions has no text to judge a model by; choose another, as data=pydocs"
        )
    config: Any = (
        OmegaConf.to_container(cfg.data, resolve=True)
        if cfg.get("data")
        else validation_data(opened.path)
    )
    length = opened.gpt.config.sequence_len
    data = instantiate({**config, "sequence_len": length, "rows_per_device": cfg.rows_per_device})
    data.attach(opened.tokenizer, batch_tokens=length * cfg.rows_per_device)
    data.prepare_data()
    return data


def validation_data(checkpoint: Path) -> dict[str, Any]:
    """The `data` of the run that a checkpoint comes from; of the nearest one before it where that had questions, not text.

    ValueError if there is none.
    """
    from nanochat.checkpoint import folder

    lineage = folder.read_lineage(checkpoint)
    data = lineage["config"].get("data") or {}
    if "rows_per_device" in data:
        return data
    parent = (lineage.get("parent") or {}).get("path")
    if parent and Path(parent).is_dir():
        return validation_data(Path(parent))
    raise ValueError(
        f"{checkpoint} was trained without a validation text that bpb could take; say which, as data=pydocs"
    )


def can_be_scored(name: str) -> bool:
    """Whether something in a task of `conf/task` is right or wrong."""
    from hydra.utils import get_class

    return get_class(compose_choice("task", name)["_target_"]).kind != "chat"  # type: ignore[attr-defined]


main = command("evaluate", run, words=named)

if __name__ == "__main__":
    main()
