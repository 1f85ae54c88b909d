"""A whole run of seconds in this process: composed, checked, prepared and trained."""

from pathlib import Path
from typing import Any

from nanochat.commands.schema import settings_of
from nanochat.runs.fit import fit
from nanochat.runs.recipe import build_recipe
from nanochat.runs.run_folder import RunFolder, open_run
from nanochat.runs.start import prepare
from nanochat.runtime.settings import check
from tests.configs.test_every_yaml import composed
from tests.train.conftest import TINY

STOCK = "lightning.pytorch.callbacks"


def recipe_of(corpus: Path, *words: str) -> Any:
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
    recipe = build_recipe(check(config, settings_of("train", config)))
    recipe.check()
    return recipe


def trained(base: Path, corpus: Path, *words: str) -> RunFolder:
    """A run of 6 steps, or as many as `words` say, below `base`, which NANOCHAT_BASE_DIR must
    name."""
    recipe = recipe_of(corpus, "max_steps=6", *words)
    folder = open_run(recipe.config, base / "runs")
    prepare(recipe, folder)
    fit(recipe, folder)
    return folder
