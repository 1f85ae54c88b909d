"""`solve=`: what it finds fits, one more does not, and what cannot go together is one line."""

from typing import Any

import pytest

from nanochat.runs import solve
from nanochat.runs.forecast import Forecast
from nanochat.runs.recipe import build_recipe
from nanochat.runs.schema import Compute
from nanochat.runtime import settings
from tests.configs.test_every_yaml import composed

PLAN = [
    "+phase=base",
    "trainer=1xh100",
    "model=d2",
    "model.sequence_len=256",
    "tokenizer.vocab_size=512",
    "max_steps=1000",
    "batch_tokens=65536",
    "dry_run=true",
]


def config_of(*words: str) -> dict[str, Any]:
    return composed(*PLAN, *words)


def forecast(config: dict[str, Any]) -> Forecast:
    return build_recipe({**config, "solve": None}).forecast


def with_rows(config: dict[str, Any], rows: int) -> dict[str, Any]:
    return {**config, "data": {**config["data"], "rows_per_device": rows}}


def test_rows_are_the_most_that_fit() -> None:
    config, line = solve.solved(config_of("solve=rows", "compute.memory_gb=0.08"))
    rows = config["data"]["rows_per_device"]
    assert f"data.rows_per_device={rows} is the most" in line and rows < 32
    assert forecast(config).fits() and not forecast(with_rows(config, 2 * rows)).fits()


def test_depth_is_the_largest_that_fits_the_card_and_the_budget() -> None:
    config, line = solve.solved(config_of("solve=depth", "compute.memory_gb=0.2"))
    depth = config["model"]["depth"]
    assert f"model.depth={depth} is the largest" in line
    deeper = {**config, "model": {**config["model"], "depth": depth + 2}}
    assert forecast(config).fits() and not forecast(with_rows(deeper, 1)).fits()
    dollars = forecast(config).dollars
    assert dollars is None
    words = "solve=depth", "price_per_gpu_hour=3", "compute.memory_gb=0.2"
    cheap = solve.solved(config_of(*words, "budget=0.001"))[0]
    assert cheap["model"]["depth"] < depth and forecast(cheap).dollars <= 0.001


def test_hours_are_what_the_budget_pays_for() -> None:
    words = "solve=hours", "price_per_gpu_hour=3", "trainer.devices=2"
    config, line = solve.solved(config_of(*words, "budget=12"))
    assert line.startswith("solve=hours: 2.00 hours on 2 devices")
    assert forecast(config).dollars == pytest.approx(12, rel=0.01)


@pytest.mark.parametrize(
    ("words", "typed", "said"),
    [
        (["budget=5"], "", "budget=5 has no effect without solve"),
        (["solve=rows", "dry_run=false"], "", "solve=rows plans and trains nothing; add dry_run"),
        (["solve=rows", "budget=5"], "", "solve=rows does not depend on a budget"),
        (["solve=hours"], "", "solve=hours needs a budget and a price"),
        (["solve=depth", "budget=5"], "", "budget=5 needs a price; add price_per_gpu_hour"),
        (["solve=depth"], "model=d2", "so model=d2 has no effect"),
        (["solve=rows"], "data.rows_per_device=2", "so data.rows_per_device=2 has no effect"),
    ],
)
def test_what_cannot_go_together_is_refused(words: list[str], typed: str, said: str) -> None:
    import re

    with pytest.raises(ValueError, match=said):
        solve.check(
            config_of(*words), lambda key: [typed] if re.match(rf"{key}[.=]", typed) else []
        )


def test_a_card_is_needed() -> None:
    with pytest.raises(ValueError, match=r"solve=rows needs a card; add compute\.card=H100"):
        solve.solved(config_of("solve=rows", "compute.card=null"))
    with pytest.raises(ValueError, match="not even one row fits"):
        solve.solved(config_of("solve=rows", "compute.memory_gb=0.001"))


def test_a_card_whose_name_is_digits_is_typed_as_it_is() -> None:
    config = config_of("compute.card=4090")
    assert settings.check(config["compute"], Compute)["card"] == 4090
    found = forecast(config)
    assert (found.device, found.limit) == ("4090", 24_000_000_000)
