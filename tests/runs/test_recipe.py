"""A phase names its recipe, which brings its data's class and the settings that only it has;
nothing else has to know of it."""

import sys
from types import ModuleType
from typing import Annotated, Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nanochat.commands import app
from nanochat.datamodules.chat import ChatDataModule
from nanochat.runs.chat import ChatRecipe
from nanochat.runs.recipe import build_recipe
from nanochat.runs.run_folder import differences
from nanochat.runs.schema import Train
from nanochat.runtime.paths import conf_dir
from nanochat.runtime.settings import Built, Portion


class Pairs(ChatDataModule):
    """Pairs of answers, the better one first."""


class PreferenceSettings(Train):
    data: Annotated[dict, Built(makes=Pairs, instead="compares answers; choose data=pairs")]
    beta: Portion


class PreferenceRecipe(ChatRecipe):
    settings = PreferenceSettings


@pytest.fixture
def phase(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a phase that a user adds: what its YAML would say."""
    theirs = ModuleType("theirs")
    theirs.PreferenceRecipe, theirs.Pairs = PreferenceRecipe, Pairs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "theirs", theirs)
    return ["+phase=sft", "trainer=cpu", "recipe._target_=theirs.PreferenceRecipe", "+beta=0.1"]


def checked(*words: str) -> dict[str, Any]:
    app.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", list(words))
        app.take_checked(cfg, "train")
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def test_a_phase_brings_its_recipe_its_data_and_its_settings(phase: list[str]) -> None:
    config = checked(*phase, "data._target_=theirs.Pairs")
    recipe = build_recipe(config)
    assert isinstance(recipe, PreferenceRecipe) and recipe.config["beta"] == 0.1
    with pytest.raises(ValueError, match=r"beta=2 must be a number above 0 and below 1"):
        checked(*phase, "data._target_=theirs.Pairs", "beta=2")
    with pytest.raises(
        ValueError,
        match=r"data is a ChatDataModule here, and this phase compares answers; choose data=pairs",
    ):
        checked(*phase)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("base", "TextRecipe"),
        ("mid", "ChatRecipe"),
        ("sft", "ChatRecipe"),
        ("sft_classic", "ChatRecipe"),
        ("rl", "RLRecipe"),
    ],
)
def test_every_phase_has_a_recipe(name: str, recipe: str) -> None:
    assert type(build_recipe(checked(f"+phase={name}", "trainer=cpu"))).__name__ == recipe


@pytest.mark.parametrize("name", ["base", "sft", "rl"])
def test_a_run_from_before_recipes_is_the_same_run(name: str) -> None:
    """Its config.yaml has no `recipe`, `size` and `evals`, and evaluations and the settings of
    phase rl stood elsewhere."""
    new = checked(f"+phase={name}", "trainer=cpu")
    old = {k: v for k, v in new.items() if k not in ("recipe", "size", "evals")}
    old |= {"tasks": {"limit": 256, "of": {}}, "pass_at_k": {"limit": 400}, "val_task": None}
    if name != "rl":
        old |= {
            **dict.fromkeys(("task", "algo", "rewards", "rollout", "pass_at_k", "preflight")),
            "force": False,
        }
    assert differences(old, new) == []
