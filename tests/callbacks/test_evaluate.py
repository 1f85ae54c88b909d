"""What an evaluation gives is recorded and told, whatever number it is."""

import contextlib
import logging
import math
from types import SimpleNamespace

import pytest
import torch

from nanochat.callbacks.evaluate import Evaluate


def at_step(found: dict, caplog: pytest.LogCaptureFixture) -> tuple[dict, str]:
    recorded: dict = {}
    metrics: dict = {}
    checkpoints = SimpleNamespace(record=lambda step, values: recorded.update(values))
    module = SimpleNamespace(
        clock=SimpleNamespace(paused=contextlib.nullcontext),
        whole_gpt=contextlib.nullcontext,
        eval=lambda: None,
        train=lambda: None,
        total_steps=5,
        device=torch.device("cpu"),
    )
    with caplog.at_level(logging.INFO):
        Evaluate({"e": (None, lambda _: found)}, checkpoints).at_step(
            SimpleNamespace(
                is_global_zero=True,
                loggers=[],
                callbacks=[],
                callback_metrics=metrics,
                progress_bar_metrics={},
            ),
            module,
            5,
        )
    assert float(metrics["val/e"]) == pytest.approx(found["e"], nan_ok=True), (
        "callbacks find it by name"
    )
    return recorded, caplog.text


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1.25, "e 1.2500"),
        (12345.0, "e 12,345"),
        (7, "e 7"),
        (1.0, "e 1.0000"),
        (0, "e 0.0000"),
        (math.inf, "e inf"),
        (math.nan, "e nan"),
    ],
)
def test_a_number_is_recorded_and_told(
    value: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded, text = at_step({"e": value}, caplog)
    assert recorded.keys() == {"val/e"} and told in text
    assert recorded["val/e"] == value or math.isnan(value)


def test_texts_of_an_evaluation_are_shown_and_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorded, text = at_step({"e": 0.5, "of": "1 of 2", "sample": ["'a b'", "'c'"]}, caplog)
    assert recorded == {"val/e": 0.5}
    for line in (
        "step 5  of: 1 of 2",
        "step 5  sample: 'a b'",
        "step 5  sample: 'c'",
        "step 5  val/e 0.5000",
    ):
        assert line in text
