"""What a logger needs is looked at before there is a run folder."""

import sys
from typing import Any

import pytest

from nanochat.runs.parts import check_loggers

WANDB = {"_target_": "nanochat.loggers.wandb.wandb", "project": "nanochat", "offline": True}
TRACKIO = {"_target_": "nanochat.loggers.trackio.Trackio"}
TENSORBOARD = {"_target_": "nanochat.loggers.tensorboard.TensorBoard"}


def test_what_can_begin_is_not_refused() -> None:
    check_loggers({"wandb": WANDB, "csv": {"_target_": "nanochat.loggers.csv.CsvLogger"}})


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [("wandb", {**WANDB, "project": "a/b"}, "logger=wandb: Invalid project name 'a/b'")],
)
def test_wrong_settings_are_one_clear_line(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_loggers({name: settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings"), [("wandb", WANDB), ("tensorboard", TENSORBOARD), ("trackio", TRACKIO)]
)
def test_a_package_that_is_not_there_is_named(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # how Python itself says that it cannot be imported
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError,
        match=f"logger={name} needs the package {name}: pip install .* or choose logger=csv",
    ):
        check_loggers({name: settings})
