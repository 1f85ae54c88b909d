"""The parts of Lightning that are reached into are as they were when it was done."""

import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from nanochat.runtime.lightning_private import TESTED, count_micro_batches, leave_signals_alone


class Watched(BoringModel):
    saved: dict | None = None

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        self.saved = checkpoint


def fitted(module: L.LightningModule, tmp_path, **more) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        max_epochs=-1,
        accumulate_grad_batches=2,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        **more,
    )
    trainer.fit(module)
    return trainer


def test_the_installed_version_was_tested() -> None:
    assert L.__version__.rpartition(".")[0] in TESTED, (
        "run the tests of tests/train, then add it to TESTED"
    )


def test_lightning_takes_no_signal_that_it_is_told_to_leave(tmp_path, monkeypatch) -> None:
    import signal

    taken = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: taken.append(number))
    fitted(BoringModel(), tmp_path)
    assert signal.SIGTERM in taken
    taken.clear()
    trainer = L.Trainer(
        accelerator="cpu", fast_dev_run=True, logger=False, enable_progress_bar=False
    )
    leave_signals_alone(trainer)
    trainer.fit(BoringModel())
    assert not taken


def test_micro_batches_are_counted_as_with_the_new_share(tmp_path) -> None:
    module = Watched()
    fitted(module, tmp_path).save_checkpoint(tmp_path / "x.ckpt")
    assert module.saved is not None
    count_micro_batches(module.saved, accumulate=5)
    progress = module.saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        assert (
            set(counts) == {"ready", "completed", "started", "processed"}
            and counts["ready"] == 3 * 5
        )
    assert torch.is_tensor(module.saved["state_dict"]["layer.weight"])
