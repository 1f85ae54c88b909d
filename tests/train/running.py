"""A whole run of seconds in this process: composed, checked, prepared and trained."""

from pathlib import Path
from typing import Any

from nanochat.commands.schema import settings_of
from nanochat.runs.fit import fit
from nanochat.runs.recipe import build_recipe
from nanochat.runs.run_folder import RunFolder, open_run
from nanochat.runtime.settings import check
from tests.configs.test_every_yaml import composed
from tests.train.conftest import TINY

STOCK = "lightning.pytorch.callbacks"


def job_of(corpus: Path, *words: str) -> Any:
    words = (
        *TINY,
        "data=local",
        f"data.path={corpus}",
        "save_every=2",
        "eval_every=2",
        "log_every=1",
        *words,
    )
    config = composed(*words)
    job = build_recipe(check(config, settings_of("train", config)))
    job.check()
    return job


def trained(base: Path, corpus: Path, *words: str) -> RunFolder:
    """A run of 6 steps, or as many as `words` say, below `base`, which NANOCHAT_BASE_DIR must name."""
    job = job_of(corpus, "max_steps=6", *words)
    folder = open_run(job.config, base / "runs")
    job.prepare(folder)
    fit(job, folder)
    return folder
