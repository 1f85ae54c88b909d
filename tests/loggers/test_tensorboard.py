"""What a logger of a resumed run shows."""

from pathlib import Path

import pytest

from nanochat.loggers.tensorboard import TensorBoard


@pytest.mark.slow
@pytest.mark.parametrize("resume_step", [0, 3, 5])
def test_tensorboard_keeps_the_points_up_to_the_step_it_resumes_from(
    tmp_path: Path, resume_step: int
) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'nanochat[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, 0)
    for step in range(1, 6):
        first.log_metrics({"train/loss": float(step)}, step)
    first.finalize("success")
    again = TensorBoard(tmp_path, resume_step)
    again.log_metrics({"train/loss": 9.0}, resume_step + 1)
    again.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    kept = list(range(1, resume_step + 1))
    assert [event.step for event in events.Scalars("train/loss")] == [*kept, resume_step + 1]
