"""Settings that look like a mistake are a line of the plan, and others are not."""

import json

import numpy as np
import pytest

from nanochat.optim import Schedule
from nanochat.runs import doubts
from nanochat.runs.earlier_runs import Earlier, look_back
from nanochat.runs.recipe import build_recipe
from tests.configs.test_every_yaml import composed


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (doubts.never_decays(Schedule(warmdown_frac=0.0), 100), "never goes down"),
        (doubts.never_decays(Schedule(final_lr_frac=1.0), 100), "final_lr_frac=1"),
        (doubts.never_decays(Schedule(), 100), None),
        (doubts.short_context(np.array([600, 700, 100]), 512), "67% of the conversations"),
        (doubts.short_context(np.array([513, 513, 600, 2]), 512), None),  # a token is a target only
        (doubts.repeated_text(4.1, "add text"), "about 4.1 times; add text"),
        (doubts.repeated_text(4.0, "add text"), None),
        (doubts.few_rows(2048, 512, 8), "4 rows for 8 processes.*try eval_tokens=4096"),
        (doubts.few_rows(4096, 512, 8), None),
        (doubts.few_rows(None, 512, 8), None),
    ],
)
def test_a_doubt_is_one_line(found: list[str], said: str | None) -> None:
    import re

    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0]), found


def test_a_run_says_its_doubts(tmp_path) -> None:
    (tmp_path / "one.txt").write_text("A few words. " * 400)
    config = composed(
        "+phase=base",
        "trainer=8xh100",
        "model=d2",
        "data=local",
        f"data.path={tmp_path}/one.txt",
        "optim.schedule.warmdown_frac=0",
        "eval_tokens=4096",
        "dry_run=true",
    )
    found = build_recipe(config).doubts()
    starts = ["the learning rate never goes down", "eval_tokens=4096 is 2 rows for 8"]
    assert all(line.startswith(start) for line, start in zip(found, starts, strict=False))
    assert len(found) == 3 and "reads its text about" in found[2]


def test_the_error_of_earlier_runs_is_found_on_this_kind_of_device(tmp_path) -> None:
    def record(name: str, device: str, predicted: int, measured: int, **more: object) -> None:
        folder = tmp_path / name / "2026-01-01"
        folder.mkdir(parents=True)
        fact = {
            "hardware": {"device": device},
            "forecast": {"peak_bytes": predicted, "tokens_per_second": 10.0},
            "outcome": {"peak_bytes": measured, "tokens_per_second": 20.0, **more},
        }
        (folder / "record.json").write_text(json.dumps(fact))

    for number, measured in enumerate((110, 130)):
        record(f"a{number}", "NVIDIA H100 80GB", 100, measured)
    assert look_back(tmp_path, "H100") == Earlier()  # two are too few
    record("halved", "NVIDIA H100 80GB", 100, 10, computed_in_parts=2)
    record("other", "NVIDIA A100", 100, 900)
    record("b", "NVIDIA H100 80GB", 100, 120)
    (tmp_path / "broken" / "x").mkdir(parents=True)
    (tmp_path / "broken" / "x" / "record.json").write_text("{")
    found = look_back(tmp_path, "H100")
    assert found == Earlier(3, 1.2, 2.0)
    assert "3 runs here took 1.20 x the memory" in found.described()
