"""The model card of an export: description, origin, scores, and how to run it. Scores are written
in both formats of the hub: `model-index` in the card, and `.eval_results/*.yaml` for tasks whose
data set is on the hub, where leaderboards find them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from nanochat.gpt import GPTConfig, counts
from nanochat.runtime.paths import conf_dir

PERCENT = ("accuracy", "pass@1")


@dataclass(frozen=True)
class Score:
    """A score and its data set. `dataset` is a name on the hub, None for other data."""

    task: str
    metric: str
    value: float
    dataset: str | None = None
    subset: str | None = None
    split: str | None = None


def scores_of(checkpoint: Path) -> list[Score]:
    """The scores stored with a checkpoint: those of its run, replaced by those of
    `nanochat.evaluate` where both exist."""
    found: dict[tuple[str, str], Score] = {}
    results = [checkpoint / "metrics.json", *sorted((checkpoint / "evals").glob("*.json"))]
    for file in results:
        if not file.is_file():
            continue
        data = json.loads(file.read_text(encoding="utf-8"))
        for key, value in (data.get("results", data)).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                score = _score(key.removeprefix("val/"), float(value), data.get("passport"))
                if score is not None:
                    found[score.task, score.metric] = score
    return list(found.values())


def _score(key: str, value: float, passport: Any) -> Score | None:
    if key == "bpb":
        return Score("validation text", "bits_per_byte", value)
    if key in ("core", "chatcore", "core_metric"):
        return Score(key, "centered_accuracy", value)
    task, _, metric = key.replace("/", "_").rpartition("_")
    if metric != "accuracy" or not task:
        return None
    file = conf_dir() / "task" / f"{task}.yaml"
    facts = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    split = passport.get("split") if isinstance(passport, dict) else None
    return Score(task, metric, value, facts.get("dataset"), facts.get("subset"), split or "test")


def write_card(
    folder: Path,
    config: GPTConfig,
    lineage: dict[str, Any],
    scores: list[Score],
    certificate: dict[str, Any],
    *,
    phase: str | None,
    own: bool,
    step: int,
) -> None:
    """README.md, and `.eval_results/` where a score has a data set on the hub."""
    run = lineage.get("config") or {}
    name = str(run.get("run_name") or f"nanochat-d{config.n_layer}")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.dataset or score.task.replace(" ", "-"),
            dataset_name=score.task,
            dataset_config=score.subset,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_value=round(score.value, 6),
        )
        for score in scores
    ]
    shown: dict[str, Any] = {"model_name": name, "eval_results": results} if results else {}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nanochat", f"arch:{config.arch.name}"],
        **shown,
    )
    text = "\n".join(_body(name, config, lineage, scores, certificate, phase, own, step))
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(folder / "README.md")
    _eval_results(folder, scores, lineage)


def _eval_results(folder: Path, scores: list[Score], lineage: dict[str, Any]) -> None:
    for score in scores:
        if score.dataset is None:
            continue
        value = score.value * 100 if score.metric in PERCENT else score.value
        notes = f"{score.metric}, {score.split} split, nanochat"
        entry = EvalResultEntry(
            score.dataset, score.subset or "default", round(value, 4), notes=notes
        )
        file = folder / ".eval_results" / f"{score.task}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8"
        )


def _body(
    name: str,
    config: GPTConfig,
    lineage: dict[str, Any],
    scores: list[Score],
    certificate: dict[str, Any],
    phase: str | None,
    own: bool,
    step: int,
) -> list[str]:
    run, total = lineage.get("config") or {}, counts.parameters(config)["total"]
    code, parent = lineage.get("code") or {}, lineage.get("parent") or {}
    trust = ", trust_remote_code=True" if own else ""
    facts = {
        "phase": phase or "unknown",
        "parameters": f"{total:,}",
        "sizes": f"{config.n_layer} layers, width {config.n_embd}, {config.n_head} heads of "
        f"{config.head_dim}, "
        f"context {config.sequence_len:,}, vocabulary {config.vocab_size:,}",
        "architecture": f"nanochat {config.arch.name}",
        "step": f"{step:,}",
        "data": (run.get("data") or {}).get("dataset") or (run.get("data") or {}).get("_target_"),
        "seed": run.get("seed"),
        "began from": run.get("init_from"),
        "hash of that": parent.get("hash"),
        "commit": code.get("commit"),
        "versions": ", ".join(
            f"{k} {v}"
            for k, v in (lineage.get("versions") or {}).items()
            if k in ("python", "torch")
        ),
    }
    lines = [f"# {name}", "", "A nanochat model.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items() if value not in (None, "")]
    lines += ["", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines += [
        f'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER"{trust})',
        f'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER"{trust})',
        "```",
        "",
    ]
    if scores:
        lines += ["| scored on | | |", "|---|---|---|"]
        lines += [f"| {s.task} | {s.metric} | {s.value:.4f} |" for s in scores] + [""]
    lines += ["## Certificate", "", f"{certificate['verdict']}: {certificate['why']}.", ""]
    if rows := [row for row in certificate.get("comparisons", []) if "where" in row]:
        lines += ["| precision | where | largest difference of a logit |", "|---|---|---|"]
        lines += [
            (
                f"| {row['dtype']} | {row['where']} | "
                f"{'not finite' if row['logit'] is None else format(row['logit'], '.1e')} |"
            )
            for row in rows
        ]
    lines += [f"- Not in stock programs: {item}" for item in certificate["unsupported"]]
    return lines
