"""Lineages of runs that were never trained, in folders as training writes them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from nanochat.checkpoint.runs import RunCheckpoints, keep_for
from nanochat.commands.configs import compose_command
from nanochat.loggers.csv import CsvLogger
from nanochat.runs.run_folder import SAMPLES, RunFolder, write_summary
from tests.test_additions import save_untrained

HOSTILE = (
    "</pre></script><script>document.title='owned'</script>"
    "<img src=http://example.com/x onerror=document.title='owned'>"
    "<b>bold</b> ``` ```` [link](http://example.com) ![image](http://example.com/x) | cell"
    "\n# heading\x1b[2J\u202etxet"
)


@cache
def config(phase: str, *words: str) -> dict[str, Any]:
    cfg = compose_command("train", [f"+phase={phase}", "trainer=cpu", *words])
    for key in OmegaConf.missing_keys(cfg):
        OmegaConf.update(cfg, key, None)
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def make_run(
    runs: Path,
    name: str,
    phase: str,
    *,
    metrics: dict[str, float],
    steps: int = 4,
    parent: Path | None = None,
    text: str = "fox",
    words: tuple[str, ...] = (),
) -> Path:
    """A finished run; returns its checkpoint. Its loss at step k is 4 - k / 2, each step took 3
    s."""
    path = runs / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        yaml.safe_dump({**config(phase, *words), "run_name": name.split("/")[0]})
    )
    stamp = name.split("/")[1]
    record = {
        "started": f"{stamp[:10]}T{stamp[11:19].replace('-', ':')}+00:00",
        "command": f"python -m nanochat.train +phase={phase}",
        "code": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"torch": "2.11"},
        "hardware": {"device": "a CPU", "memory_bytes": 2**34, "processes": 1},
        "plan": {"steps": steps, "batch_tokens": 1000},
        "parent": parent and {"path": str(parent)},
    }
    (path / "record.json").write_text(json.dumps(record))
    logger = CsvLogger(path)
    for step in range(1, steps + 1):
        logger.log_metrics(
            {"train/loss": 4 - step / 2, "perf/step_seconds": 3.0, "train/tokens": 1000 * step},
            step,
        )
    logger.log_metrics(metrics, steps)
    checkpoint = path / f"checkpoints/step_{steps:06d}"
    save_untrained(checkpoint)
    RunCheckpoints(path / "checkpoints").record(steps, metrics)
    (path / SAMPLES).write_text(json.dumps({"step": steps, "prompt": text, "text": text}) + "\n")
    ledger = {"steps": steps, "tokens_read": 5000, "tokens_trained": 4000, "tokens_cropped": 1000}
    write_summary(RunFolder(path, False, None), steps, 12.5, ledger)
    if parent is not None:
        keep_for(parent, path)
    return checkpoint


def make_lineage(runs: Path, text: str = "fox") -> Path:
    """base, sft; returns the last run's folder. 80 of 100 answers are right."""
    base = make_run(
        runs, "base-d1/2026-01-01_00-00-00Z", "base", metrics={"val/bpb": 1.25}, text=text
    )
    words = ("+task@evals.tasks.of.mine=identity", "evals.tasks.limit=100")
    sft = make_run(
        runs,
        "sft-d1/2026-01-02_00-00-00Z",
        "sft",
        metrics={"val/bpb": 0.75, "val/mine_accuracy": 0.8},
        parent=base,
        text=text,
        words=words,
    )
    return sft.parent.parent
