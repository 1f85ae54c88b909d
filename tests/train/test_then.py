"""`then=`: an experiment that follows in the same command."""

import sys

import pytest

from nanochat.train import check_then, next_words
from tests.configs.test_every_yaml import composed

TYPED = "experiment=d34_chat +phase=mid init_from=org/model run_name=a trainer=cpu max_steps=8"


def test_the_next_part_gets_what_was_typed_but_what_is_of_one_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *TYPED.split()])
    config = {"then": "d34_sft", "dry_run": False, "init_from": "org/model"}
    assert next_words(config) == ["experiment=d34_sft", "trainer=cpu", "max_steps=8"]
    assert "init_from=org/model" in next_words({**config, "dry_run": True})


def test_what_follows_has_to_be_an_experiment() -> None:
    with pytest.raises(ValueError, match=r"then=d34_sftt is no experiment; there are .*d34_sft,"):
        check_then({"then": "d34_sftt"})


def test_the_d34_recipe_is_mid_and_then_sft_with_rows_that_fit() -> None:
    """The original trained d34 with 4 rows in 69.8 GB (facts sheet 6.5)."""
    first = composed("experiment=d34_chat")
    second = composed(f"experiment={first['then']}")
    assert [one["phase"] for one in (first, second)] == ["mid", "sft"]
    assert first["init_from"] == "karpathy/nanochat-d34"
    assert second["init_from"] == f"{first['run_name']}@latest"
    assert {one["data"]["rows_per_device"] for one in (first, second)} == {4}
    assert second["then"] is None and second["trainer"]["devices"] == 1
