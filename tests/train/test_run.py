"""One whole run through the real command, and what it leaves behind."""

import csv
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints, resolve
from nanochat.gpt import counts
from tests import processes
from tests.train.conftest import Train, environment, losses, make_corpus, the_run


@pytest.fixture(scope="module")
def finished(train: Train, shared_base: Path) -> tuple[Path, str]:
    """A finished run of 20 steps and what it printed."""
    done = train("run_name=finished", "max_steps=20", "sample.prompts=[the]", "sample_every=10")
    return the_run(shared_base, "finished"), done.stdout


@pytest.mark.slow
def test_a_run_learns_and_says_what_it_did(finished: tuple[Path, str]) -> None:
    run, out = finished
    curve = {step: float(loss) for step, loss in losses(run).items()}
    assert sorted(curve) == list(range(1, 21))
    assert curve[20] < curve[1] - 0.5
    for part in (
        "plan",
        "parameters",
        "horizon",
        "Muon weight decay",
        "lm_head.weight",
        "attention: sdpa",
        "tokens_trained 20,480",
        "checkpoint: ",
        "next: python -m nanochat.sample",
        "sample at step 20",
    ):
        assert part in out, part


@pytest.mark.slow
def test_the_run_folder_holds_the_record(finished: tuple[Path, str]) -> None:
    run, _ = finished
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["phase"] == "base" and config["max_steps"] == 20 and config["data"]["seed"] == 42
    record = json.loads((run / "record.json").read_text())
    assert record["command"].startswith("python -m nanochat.train +phase=base")
    assert record["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(
        record["versions"]["torch"]
    )
    assert record["plan"]["steps"] == 20 and record["plan"]["batch_tokens"] == 1024
    assert (
        {"commit", "dirty"} <= set(record["code"])
        and record["seed"] == 42
        and record["hardware"]["processes"] == 1
    )


@pytest.mark.slow
def test_every_logged_row_is_whole(finished: tuple[Path, str]) -> None:
    with (finished[0] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    training = [r for r in rows if r["train/loss"]]
    assert [int(r["step"]) for r in training] == list(range(1, 21))
    assert all(
        float(r["perf/tokens_per_second"]) > 0 and r["train/tokens"] == str(1024 * int(r["step"]))
        for r in training
    )
    assert [int(r["step"]) for r in rows if r["val/bpb"]] == [10, 20]


@pytest.mark.slow
def test_the_checkpoint_loads_without_lightning_hydra_or_pickle(finished: tuple[Path, str]) -> None:
    path = RunCheckpoints(finished[0] / "checkpoints").path(20)
    assert {p.name for p in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "token_bytes.npy",
        "lineage.json",
        "files.json",
        "metrics.json",
        "trainer",
    }
    code = (
        "import sys\n"
        "from nanochat.checkpoint.folder import load_gpt, load_tokenizer\nfrom pathlib import "
        "Path\n"
        f"p = Path({str(path)!r})\ngpt, tok = load_gpt(p), load_tokenizer(p)\n"
        "assert not {'lightning', 'hydra', 'omegaconf', 'pytorch_lightning'} & set(sys.modules), "
        "sorted(sys.modules)\n"
        "import torch\nprint(gpt(torch.tensor([[tok.bos_id, *tok.encode('the river')]])).shape[-1] "
        "== tok.vocab_size)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "True"
    )


@pytest.mark.slow
def test_the_saved_model_has_the_counted_parameters_and_plain_names(
    finished: tuple[Path, str],
) -> None:
    path = RunCheckpoints(finished[0] / "checkpoints").path(20)
    weights = load_file(path / "model.safetensors")
    assert (
        sum(w.numel() for w in weights.values())
        == counts.parameters(folder.read_config(path))["total"]
    )
    assert not [name for name in weights if "_orig_mod" in name or name.startswith("gpt.")]


@pytest.mark.slow
def test_a_checkpoint_is_found_by_folder_run_and_name(
    finished: tuple[Path, str], shared_base: Path
) -> None:
    run, runs = finished[0], shared_base / "runs"
    twenty = run / "checkpoints" / "step_000020"
    for words in (
        twenty,
        f"{run}@latest",
        "finished@latest",
        "finished@best",
        "finished@20",
        f"finished/{run.name}@latest",
    ):
        assert resolve(words, runs) == twenty, words
    with pytest.raises(ValueError, match=r"holds \d checkpoints; choose one of: .*@latest, .*@20"):
        resolve(run, runs)
    for step in ("7", "²"):  # int() does not read the second, though it is a digit
        with pytest.raises(ValueError, match="one of the steps"):
            resolve(f"finished@{step}", runs)
    with pytest.raises(
        ValueError, match=r"no run called finish .*; did you mean finished@latest\?"
    ):
        resolve("finish@latest", runs)
    with pytest.raises(
        ValueError, match=r"neither a folder nor .*; did you mean finished@latest\?"
    ):
        resolve("finished", runs)
    with pytest.raises(ValueError, match=r"runs here: .*finished@latest"):
        resolve("quite another", runs)


@pytest.mark.slow
def test_sample_and_evaluate_work_from_another_folder(
    finished: tuple[Path, str], shared_base: Path, tmp_path: Path
) -> None:
    def call(*words: str) -> str:
        done = processes.run(list(words), env=environment(shared_base), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = call(
        "nanochat.sample",
        "ckpt=finished@latest",
        "start=the river, (and",
        "num_samples=2",
        "max_tokens=8",
        "top_k=null",
    )
    assert text.count("the river, (and") == 2
    assert text == call(
        "nanochat.sample",
        "ckpt=finished@latest",
        "start=the river, (and",
        "num_samples=2",
        "max_tokens=8",
        "top_k=null",
    )
    result = call(
        "nanochat.evaluate",
        "ckpt=finished@latest",
        "evals=bpb,sample",
        "eval_tokens=2048",
        "rows_per_device=4",
        "precision=fp32",
    )
    logged = json.loads((finished[0] / "checkpoints" / "step_000020" / "metrics.json").read_text())[
        "val/bpb"
    ]
    # the same rows through the same weights: equal but for the order of fp32 sums in batches of
    # another size
    assert abs(float(result.split("bpb: ")[1].split()[0]) - logged) < 1e-5
    assert not list(tmp_path.iterdir()), "a command that only reads leaves nothing behind"


@pytest.mark.slow
def test_another_tokenizer_of_equal_size_is_refused(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    from nanochat.tokenizer import train_bpe

    rng = random.Random(3)
    random_words = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(300)]
    path = shutil.copytree(finished[0] / "checkpoints" / "step_000020", tmp_path / "copy")
    train_bpe([" ".join(reversed(random_words))], 320, max_chars=None, doc_cap=None).save(path)
    with pytest.raises(ValueError, match="was trained with"):
        folder.load_tokenizer(path)


@pytest.mark.slow
def test_init_from_starts_a_new_run_from_the_weights(
    finished: tuple[Path, str], train: Train, shared_base: Path
) -> None:
    words = ["run_name=second", "max_steps=2", "init_from=finished@latest", "seed=7"]
    refused = train(*words, code=2).stderr
    assert "tokenizer.vocab_size=320 cannot take effect" in refused and "brings its own" in refused
    done = processes.run(
        [
            "nanochat.train",
            "+phase=base",
            "trainer=cpu",
            "data=local",
            f"data.path={_path(finished[0])}",
            "model=d2",
            "model.head_dim=32",
            "model.aspect_ratio=32",
            "data.num_workers=0",
            "compute.compile=false",
            "sample.prompts=[]",
            "batch_tokens=1024",
            "eval_tokens=2048",
            *words,
        ],
        env=environment(shared_base),
    )
    assert done.returncode == 0, done.stderr
    assert "16 rows x 64 tokens x 1 processes" in " ".join(done.stdout.split()), (
        "context and data are the parent's"
    )
    first, second = losses(finished[0]), losses(the_run(shared_base, "second"))
    assert float(second[1]) < float(first[1]) - 0.5, "it starts where the parent ended"
    lineage = folder.read_lineage(the_run(shared_base, "second") / "checkpoints" / "step_000002")
    assert (
        lineage["parent"]["path"].endswith("step_000020") and len(lineage["parent"]["sha256"]) == 64
    )


def _path(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["data"]["path"])


@pytest.mark.slow
def test_an_evaluation_that_fails_is_logged_and_training_goes_on(
    train: Train, shared_base: Path, tmp_path: Path
) -> None:
    # prompts with a character that a char tokenizer has never seen make sampling fail at every turn
    done = train(
        "run_name=failing",
        "tokenizer=char",
        "tokenizer.vocab_size=auto",
        "max_steps=4",
        "sample.prompts=['99']",
        "sample_every=2",
    )
    assert done.stdout.count("sampling failed at step") == 2 and sorted(
        losses(the_run(shared_base, "failing"))
    ) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_step_and_a_report(
    train: Train, shared_base: Path
) -> None:
    done = train(
        "run_name=nan",
        "max_steps=30",
        "optim.groups.matrix.lr=1e4",
        "optim.groups.embedding.lr=1e4",
        code=2,
    )
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
    step = int(line.split("at step ")[1].split(";")[0])
    report = json.loads(
        (the_run(shared_base, "nan") / f"not_finite_step_{step:06d}" / "report.json").read_text()
    )
    assert (
        report["step"] == step
        and report["batch"] == step - 1
        and not all(p["finite"] for p in report["parameters"].values())
    )


@pytest.mark.slow
def test_two_processes_train_as_one(train: Train, shared_base: Path) -> None:
    train("run_name=one", "max_steps=6", "save_every=6", "data.rows_per_device=2")
    train(
        "run_name=two", "max_steps=6", "save_every=6", "data.rows_per_device=2", "trainer.devices=2"
    )
    one, two = the_run(shared_base, "one"), the_run(shared_base, "two")
    # the same 6 global batches; fp32 sums in another order, through 6 updates
    assert all(abs(float(losses(one)[s]) - float(losses(two)[s])) < 2e-5 for s in range(1, 7))
    a, b = (load_file(r / "checkpoints" / "step_000006" / "model.safetensors") for r in (one, two))
    # AdamW divides by the root of the mean square, so a gradient that is 0 but for rounding becomes
    # a step of full size: rare elements differ by more than rounding, and so does backout_lambda
    # (every block adds 0 at the start).
    assert all(
        float(((a[k] - b[k]).abs() > 1e-4).float().mean()) < 1e-3
        for k in a
        if k != "backout_lambda"
    )
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir()), (
        "no rank leaves anything of its own"
    )


@pytest.mark.slow
def test_a_sweep_gives_each_trial_its_folder_and_outlives_a_failure(
    shared_base: Path, tiny: list[str]
) -> None:
    done = processes.run(
        [
            "nanochat.train",
            "-m",
            *tiny,
            "run_name=sweep",
            "max_steps=2",
            "model.n_head=2,3",
            "seed=1,2",
        ],
        env=environment(shared_base),
    )
    assert done.returncode == 2 and "n_head=3" in done.stderr, done.stderr
    trials = sorted((shared_base / "runs" / "sweep").glob("sweep-*/*/metrics.csv"))
    assert [t.parent.name for t in trials] == ["0", "1"], (
        "the two sound trials ran although the other two failed"
    )


@pytest.mark.slow
def test_optuna_minimises_val_bpb(shared_base: Path, tiny: list[str]) -> None:
    pytest.importorskip(
        "hydra_plugins.hydra_optuna_sweeper", reason="pip install 'nanochat[sweep]'"
    )
    done = processes.run(
        [
            "nanochat.train",
            "-m",
            *tiny,
            "run_name=optuna",
            "max_steps=3",
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=4",
            "model.n_head=choice(2,3)",
            "hydra.sweeper.sampler.seed=1",
            "optim.groups.matrix.lr=tag(log,interval(0.001,0.1))",
        ],
        env=environment(shared_base),
    )
    assert done.returncode == 0, done.stderr
    assert "does not divide into n_head=3 heads" in done.stderr, (
        "a trial that cannot work, and the sweep goes on"
    )
    (result,) = (shared_base / "runs" / "optuna").glob("sweep-*/optimization_results.yaml")
    best = yaml.safe_load(result.read_text())
    values = [
        json.loads(p.read_text())["val/bpb"]
        for p in result.parent.glob("*/checkpoints/step_000003/metrics.json")
    ]
    assert 0 < len(values) < 4 and best["best_value"] == pytest.approx(min(values), abs=1e-12)


@pytest.mark.slow
def test_wandb_works_offline_and_a_resumed_run_keeps_its_id(
    train: Train, shared_base: Path
) -> None:
    words = [
        "run_name=tracked",
        "logger=wandb",
        "logger.wandb.offline=true",
        "max_steps=6",
        "save_every=3",
    ]
    train(*words, WANDB_SILENT="true")
    run = the_run(shared_base, "tracked")
    for step in (6,):  # as if it had been killed after step 3
        shutil.rmtree(run / "checkpoints" / f"step_{step:06d}")
    train(*words, "resume=auto", WANDB_SILENT="true")
    ids = [p.name.rpartition("-")[2] for p in (run / "wandb").glob("offline-run-*")]
    assert len(ids) == 2 and len(set(ids)) == 1
    assert sorted(losses(run)) == list(range(1, 7)), "metrics.csv is written whatever else is"


@pytest.mark.slow
def test_tensorboard_gets_the_losses(train: Train, shared_base: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'nanochat[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train("run_name=board", "logger=tensorboard", "max_steps=3")
    run = the_run(shared_base, "board")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    seen = {e.step: e.value for e in events.Scalars("train/loss")}
    assert seen == {
        step: pytest.approx(float(loss), rel=1e-6) for step, loss in losses(run).items()
    }  # stored as fp32


def test_make_corpus_is_the_same_everywhere(tmp_path: Path) -> None:
    import hashlib

    digest = hashlib.sha256((make_corpus(tmp_path) / "text.jsonl").read_bytes()).hexdigest()
    assert digest[:16] == CORPUS_DIGEST


CORPUS_DIGEST = "1580d522b2e183a0"
