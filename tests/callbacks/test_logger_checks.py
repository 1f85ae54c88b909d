"""What a logger needs is looked at before there is a run folder."""

import sys
from typing import Any

import pytest

from nanochat.callbacks import loggers

WANDB = {"_target_": "nanochat.callbacks.loggers.wandb", "project": "nanochat", "offline": True}
TENSORBOARD = {"_target_": "nanochat.callbacks.loggers.tensorboard"}


def test_what_can_begin_is_not_refused() -> None:
    loggers.check({"wandb": WANDB, "csv": {"_target_": "nanochat.callbacks.loggers.csv"}})


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("wandb", {**WANDB, "projct": "x"}, "logger.wandb.projct is not a setting of this logger; it has offline, project"),
        ("wandb", {**WANDB, "project": "a/b"}, "logger=wandb: Invalid project name 'a/b'"),
        ("wandb", {**WANDB, "offline": "maybe"}, "logger.wandb.offline=maybe must be true or false"),
        ("wandb", {"_target_": WANDB["_target_"]}, r"logger.wandb.offline must be given: add \+logger.wandb.offline=…"),
        ("tensorboard", {**TENSORBOARD, "every": 3}, "logger.tensorboard.every is not a setting of this logger; it has none"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_clear_line(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        loggers.check({name: settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "settings"), [("wandb", WANDB), ("tensorboard", TENSORBOARD)])
def test_a_package_that_is_not_there_is_named(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # how Python itself says that it cannot be imported
    with pytest.raises(
        ValueError, match=f"logger={name} needs the package {name}: pip install .* or choose logger=csv"
    ):
        loggers.check({name: settings})
