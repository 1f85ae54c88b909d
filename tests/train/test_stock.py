"""Callbacks and loggers of Lightning in a run: they work as their documentation says, and disturb
nothing."""

import csv
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.commands.schema import COMMANDS
from nanochat.evals.bpb import bits_per_byte
from nanochat.modules.next_token import NextTokenModule
from nanochat.runs import parts
from nanochat.runtime.settings import check
from tests.configs.test_every_yaml import composed
from tests.train.conftest import losses
from tests.train.running import STOCK, recipe_of, trained

EMA = [f"+callbacks.average._target_={STOCK}.EMAWeightAveraging", "+callbacks.average.decay=0.5"]


@pytest.fixture
def base(shared_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(shared_base))
    return shared_base


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(RunCheckpoints(run / "checkpoints").path(step) / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_early_stopping_ends_the_run_saved_and_evaluated(base: Path, corpus: Path) -> None:
    stop = [f"+callbacks.stop._target_={STOCK}.EarlyStopping", "+callbacks.stop.monitor=val/bpb"]
    words = [
        "run_name=early",
        *stop,
        "+callbacks.stop.min_delta=9",
        "+callbacks.stop.patience=1",
        "save_every=null",
    ]
    run = trained(base, corpus, *words).path
    checkpoints = RunCheckpoints(run / "checkpoints")
    assert sorted(losses(run)) == [1, 2, 3, 4] and checkpoints.steps() == [4]
    assert checkpoints.metrics(4)["val/bpb"] > 0
    assert (run / "metrics.csv").read_text().count("\n4,") == 2, "the step and its one evaluation"


@pytest.mark.slow
def test_averaged_weights_are_those_that_are_evaluated_saved_and_resumed(
    base: Path, corpus: Path
) -> None:
    plain = trained(base, corpus, "run_name=plain").path
    run = trained(base, corpus, "run_name=average", *EMA, "checkpoints.keep_last=null").path
    assert losses(run) == losses(plain), "what is trained does not change"
    place = RunCheckpoints(run / "checkpoints").path(6)
    raw = checkpoint_folder.read_state(place)["current_model_state"]
    assert equal({k.removeprefix("gpt."): v for k, v in raw.items()}, weights(plain, 6))
    assert not equal(weights(run, 6), weights(plain, 6))
    recipe = recipe_of(corpus, "max_steps=6", "run_name=average", *EMA)
    recipe.attach()
    gpt = checkpoint_folder.load_to_run(
        place, device=torch.device("cpu"), compute_dtype=torch.float32
    )
    found = bits_per_byte(gpt, recipe.data.val_batches(2048), recipe.tokenizer.token_bytes)["bpb"]
    # the same weights and rows in batches of another shape: fp32 sums in another order
    assert found == pytest.approx(
        RunCheckpoints(run / "checkpoints").metrics(6)["val/bpb"], rel=1e-7
    )
    assert abs(found - RunCheckpoints(plain / "checkpoints").metrics(6)["val/bpb"]) > 1e-3
    uninterrupted = weights(run, 6)
    for step in (4, 6):
        shutil.rmtree(RunCheckpoints(run / "checkpoints").path(step))
    before = losses(run)
    trained(base, corpus, "run_name=average", *EMA, "checkpoints.keep_last=null", "resume=auto")
    assert losses(run) == before and equal(weights(run, 6), uninterrupted)


@pytest.mark.slow
def test_several_of_lightnings_own_in_one_run(
    base: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"+callbacks.best._target_={STOCK}.ModelCheckpoint",
        "+callbacks.best.monitor=val/bpb",
        f"+callbacks.rates._target_={STOCK}.LearningRateMonitor",
        f"+callbacks.bar._target_={STOCK}.TQDMProgressBar",
        "+logger.more._target_=lightning.pytorch.loggers.CSVLogger",
        "progress=auto",
    ]
    run = trained(base, corpus, "run_name=several", *words).path
    assert "step      1/6" not in capsys.readouterr().out, "one progress bar is enough"
    assert losses(run) == losses(trained(base, corpus, "run_name=without").path)
    (best,) = (run / "best").iterdir()
    assert equal(load_file(best / "model.safetensors"), weights(run, 6)), (
        "bits per byte fall to the last step"
    )
    with (run / "lightning_logs" / "version_0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"]: row["train/loss"] for row in rows if row["train/loss"]} == {
        str(s): v for s, v in losses(run).items()
    }
    assert any(row["lr-GroupedOptimizer/pg1"] for row in rows)


class LoggingPhase(NextTokenModule):
    """Logs the square of the loss of a micro-batch, as any LightningModule would."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train/z", loss.detach() ** 2, prog_bar=True)
        return loss


@pytest.mark.slow
def test_what_a_phase_logs_is_a_metric_of_its_step(
    base: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"module._target_={__name__}.LoggingPhase",
        "data.rows_per_device=16",  # one micro-batch a step
        f"+callbacks.stop._target_={STOCK}.EarlyStopping",
        "+callbacks.stop.monitor=train/z",
        "+callbacks.stop.mode=max",  # it falls: the second evaluation stops
        "+callbacks.stop.patience=1",
        f"+callbacks.best._target_={STOCK}.ModelCheckpoint",
        "+callbacks.best.monitor=train/z",
        "+callbacks.best.filename='{train/z:.3f}'",
        "+logger.more._target_=lightning.pytorch.loggers.CSVLogger",
    ]
    run = trained(base, corpus, "run_name=logging", *words).path
    trained_losses = losses(run)
    assert sorted(trained_losses) == [1, 2, 3, 4], "stopped after the evaluation of step 4"
    want = {step: float(loss) ** 2 for step, loss in trained_losses.items()}
    for file in (run / "metrics.csv", run / "lightning_logs" / "version_0" / "metrics.csv"):
        with file.open(newline="") as rows:
            found = {
                int(r["step"]): float(r["train/z"]) for r in csv.DictReader(rows) if r["train/z"]
            }
        assert found == pytest.approx(want, rel=1e-6), "squared in fp32, and in fp64"
    assert f"train/z {want[1]:.4g}" in capsys.readouterr().out
    (best,) = (run / "best").rglob("model.safetensors")
    assert f"{want[4]:.3f}" in str(best)


@pytest.mark.slow
def test_a_fast_dev_run_passes_through_everything_and_keeps_nothing(
    train: Callable[..., "CompletedProcess[str]"], shared_base: Path
) -> None:
    words = [
        "run_name=passing",
        "trainer.fast_dev_run=2",
        "trainer.profiler=simple",
        "sample.prompts=[the]",
    ]
    done = train(*words)
    assert "sample at step 2" in done.stdout and "step 2  val/bpb" in done.stdout
    assert (
        "Profiler Report" in done.stdout + done.stderr
        and "2 steps and what comes at the end" in done.stdout
    )
    assert not (shared_base / "runs" / "passing").exists()


@pytest.mark.slow
def test_device_stats_are_logged(base: Path, corpus: Path) -> None:
    pytest.importorskip("psutil", reason="DeviceStatsMonitor needs it on a CPU")
    run = trained(
        base, corpus, "run_name=stats", f"+callbacks.stats._target_={STOCK}.DeviceStatsMonitor"
    ).path
    assert "DeviceStatsMonitor.on_train_batch_end/cpu_percent" in (run / "metrics.csv").read_text()


@pytest.mark.slow
def test_lightning_validates_and_tests_as_a_run_evaluates(base: Path, corpus: Path) -> None:
    recipe = recipe_of(corpus, "max_steps=6", "run_name=validated")
    recipe.attach()
    recipe.data.prepare_data()
    module = recipe.build_module(recipe.build_gpt(filled=True))
    module.gpt.prepare(compute_dtype=torch.float32)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    (found,) = trainer.validate(module, datamodule=recipe.data, verbose=False)
    wanted = bits_per_byte(module.gpt, recipe.data.val_batches(), recipe.tokenizer.token_bytes)
    assert found["val/bpb"] == pytest.approx(wanted["bpb"], rel=1e-6)  # logged as fp32
    (found,) = trainer.test(module, datamodule=recipe.data, verbose=False)
    assert found["test/bpb"] == pytest.approx(wanted["bpb"], rel=1e-6)


def test_sampling_may_be_left_out_and_saving_may_not() -> None:
    callbacks = composed("+phase=base", "trainer=cpu", "~callbacks.sample")["callbacks"]
    parts.check_callbacks(callbacks)
    assert list(callbacks) == ["report", "save", "evaluate"]
    for name in ("report", "save"):
        with pytest.raises(
            ValueError, match=f"callbacks.{name} cannot be left out: it .*; (progress|save_every)="
        ):
            parts.check_callbacks({k: v for k, v in callbacks.items() if k != name})


@pytest.mark.parametrize("name", [kind.__name__ for kind in parts.CANNOT])
def test_a_callback_that_cannot_work_says_why(name: str) -> None:
    with pytest.raises(ValueError, match=f"callbacks.x: {name} cannot work in a run: .*"):
        parts.callback_settings({"_target_": f"{STOCK}.{name}"}, "callbacks.x")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "+callbacks.x.monitor=a",
            "callbacks.x has no _target_: name its class, as +callbacks.x._target_=",
        ),
        (
            f"+callbacks.x._target_={STOCK}.Early",
            f"callbacks.x._target_={STOCK}.Early: there is no object with this name",
        ),
        (
            "+callbacks.x._target_=builtins.dict",
            "callbacks.x._target_=builtins.dict is not a callback of Lightning",
        ),
        ("+callbacks.save.every=5", "callbacks.save.every comes from the run; set save_every=N"),
        ("+logger.m._target_=lightning.pytorch.loggers.CSV", "there is no object with this name"),
    ],
)
def test_what_is_no_part_is_refused_in_one_line(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        check(composed("+phase=base", "trainer=cpu", word), COMMANDS["train"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_logger_is_given_the_run_folder_where_none_was_typed(tmp_path: Path) -> None:
    one: dict[str, Any] = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
    ours = {"_target_": "nanochat.loggers.csv.CsvLogger"}
    made = parts.build_loggers(
        {"ours": ours, "m": one, "n": {**one, "save_dir": "/elsewhere"}}, tmp_path, 0
    )
    assert made[0].file == tmp_path / "metrics.csv"
    assert (
        isinstance(made[1], CSVLogger)
        and made[1].save_dir == str(tmp_path)
        and made[2].save_dir == "/elsewhere"
    )


class Kept(CSVLogger):
    """A logger with a store besides its folder, as Lightning's MLFlowLogger has it."""

    def __init__(self, save_dir: str = "", tracking_uri: str | None = None) -> None:
        super().__init__(save_dir)
        self.uri = tracking_uri


def test_a_store_is_in_the_run_folder_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow refuses the files that its logger would write into save_dir."""
    kept = {"_target_": f"{__name__}.Kept"}
    typed = [kept, {**kept, "tracking_uri": "sqlite:///x"}, {**kept, "save_dir": "/elsewhere"}]
    found = [parts.build_logger(one, tmp_path).uri for one in typed]
    assert found == [f"sqlite:///{tmp_path}/mlflow.db", "sqlite:///x", None]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    assert parts.build_logger(kept, tmp_path).uri is None  # its logger then reads the variable


def test_a_logger_without_its_package_is_refused_in_one_line() -> None:
    if find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    with pytest.raises(
        ValueError, match=r"logger.m: MLFlowLogger needs a package that is not here: .*mlflow"
    ):
        parts.check_loggers({"m": {"_target_": "lightning.pytorch.loggers.MLFlowLogger"}})
