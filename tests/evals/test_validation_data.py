"""Which validation text `nanochat.evaluate` takes for a checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

from nanochat.evaluate import validation_data

TEXT = {"_target_": "text", "rows_per_device": 4}
QUESTIONS = {"_target_": "questions", "micro_tokens": None}


def checkpoint(folder: Path, data: dict | None, parent: Path | None) -> Path:
    folder.mkdir()
    lineage = {
        "config": {"phase": "rl", **({"data": data} if data else {})},
        "parent": parent and {"path": str(parent)},
    }
    (folder / "lineage.json").write_text(json.dumps(lineage))
    return folder


def test_it_is_that_of_the_run_or_else_of_the_nearest_one_before_it_with_text(tmp_path):
    base = checkpoint(tmp_path / "base", {**TEXT, "path": "base"}, None)
    sft = checkpoint(tmp_path / "sft", TEXT, base)
    once = checkpoint(tmp_path / "once", QUESTIONS, sft)
    twice = checkpoint(tmp_path / "twice", QUESTIONS, once)
    assert [validation_data(path) for path in (sft, once, twice)] == [TEXT] * 3
    shutil.rmtree(sft)
    with pytest.raises(
        ValueError, match=r"once was trained without a validation text .* data=pydocs"
    ):
        validation_data(twice)


def test_a_checkpoint_that_does_not_say_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="start was trained without"):
        validation_data(checkpoint(tmp_path / "start", None, None))
