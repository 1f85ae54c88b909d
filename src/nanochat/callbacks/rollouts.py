"""Every rollout as a line of `rollouts.jsonl` in the run folder, and now and then a few of them as
a table to be read."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from nanochat.callbacks.every import StepCallback, is_due
from nanochat.distributed import gathered
from nanochat.modules.phase import PhaseModule
from nanochat.modules.rl import RLModule
from nanochat.rl.rollout import Rollout
from nanochat.tasks.task import Task
from nanochat.tokenizer.tokenizer import Tokenizer

LINE_BREAK = re.compile("\r\n|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")  # those of str.splitlines
TABLE_ROWS = 8  # guess: what fits a screen
COLUMNS = (
    "step",
    "question",
    "prompt",
    "completion",
    "reward",
    "advantage",
    "tokens",
    "finish_reason",
)


class Rollouts(StepCallback):
    """Runs before `Save`, so what a checkpoint was trained on is on disk before it. On resume,
    lines after the step resumed from are deleted."""

    def __init__(
        self, run_folder: Path, tokenizer: Tokenizer, task: Task, *, table_every: int | None
    ) -> None:
        self.file, self.tables = run_folder / "rollouts.jsonl", run_folder / "samples"
        self.tokenizer, self.task, self.table_every = tokenizer, task, table_every

    def on_train_start(self, trainer: L.Trainer, module: PhaseModule) -> None:
        super().on_train_start(trainer, module)
        if trainer.is_global_zero and self.file.is_file():
            forget_after(self.file, trainer.global_step)

    def at_step(self, trainer: L.Trainer, module: PhaseModule, step: int) -> None:
        assert isinstance(module, RLModule)
        if module.collected_at != step - 1 or module.experience is None:
            return  # a further update on the same answers
        rows = [self.row(step, rollout) for rollout in module.experience.rollouts]
        rows = [row for of_process in gathered(rows) for row in of_process]
        if not trainer.is_global_zero:
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if is_due(step, self.table_every, module.total_steps) or step == 1:
            table = chosen(rows)
            self.tables.mkdir(exist_ok=True)
            (self.tables / f"step_{step:06d}.md").write_text(markdown(table), encoding="utf-8")
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_table(
                        "samples",
                        list(COLUMNS),
                        [[row[key] for key in COLUMNS] for row in table],
                        step=step,
                    )

    def row(self, step: int, rollout: Rollout) -> dict[str, Any]:
        drawn = [p for p in rollout.completion.logprobs if p is not None]
        return {
            "step": step,
            "question": rollout.question,
            "sample": rollout.sample,
            "prompt": self.tokenizer.decode(rollout.prompt),
            "completion": rollout.text,
            "reward": rollout.reward,
            "rewards": rollout.rewards,
            "advantage": rollout.advantage,
            "tokens": len(rollout.completion.ids),
            "finish_reason": rollout.completion.finish_reason,
            "logprobs": {"mean": sum(drawn) / len(drawn), "min": min(drawn), "sum": sum(drawn)}
            if drawn
            else None,
        }


def forget_after(file: Path, step: int) -> None:
    """Keep the lines up to `step`; one that a killed writer left half is none."""
    kept = []
    # not splitlines: a model may write U+2028
    for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(file)


def chosen(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best and the worst answer to each of the first questions, those with a difference before
    those without."""
    of_question: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of_question.setdefault(row["question"], []).append(row)
    pairs = [
        (max(group, key=lambda r: r["reward"]), min(group, key=lambda r: r["reward"]))
        for group in of_question.values()
    ]
    pairs.sort(key=lambda pair: pair[0]["reward"] == pair[1]["reward"])
    return [row for pair in pairs for row in (pair if pair[0] is not pair[1] else pair[:1])][
        :TABLE_ROWS
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table that Markdown shows as it is."""

    def cell(value: Any) -> str:
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        return LINE_BREAK.sub("⏎", text).replace("|", "\\|").replace("<", "&lt;")

    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return (
        "\n".join(
            [*lines, *("| " + " | ".join(cell(row[key]) for key in COLUMNS) + " |" for row in rows)]
        )
        + "\n"
    )
