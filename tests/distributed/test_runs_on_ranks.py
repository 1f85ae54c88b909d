"""A run that is killed under DDP and goes on under FSDP2 on more processes ends as that of one
process."""

from pathlib import Path

import pytest

from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint.runs import RunCheckpoints
from tests.distributed.runs_of_ranks import end_of, gap, killed, ranks_of, trained
from tests.train.conftest import TINY, losses, make_corpus

ROLES = ("head", "embedding", "value_embedding", "resid_scalar", "x0_scalar", "gate_scalar")
# rates and eps at which sums in another order stay small: experiments/distributed/README.md
CALM = ["optim.schedule.init_lr_frac=0.0003", *(f"+optim.groups.{r}.eps=1e-6" for r in ROLES)]


@pytest.mark.slow  # six processes
def test_killed_under_ddp_it_goes_on_under_fsdp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    words = [
        *(
            word
            for word in TINY
            if not word.startswith(("batch_tokens", "save_every", "eval_every"))
        ),
        "data=local",
        f"data.path={make_corpus(tmp_path / 'corpus')}",
        "batch_tokens=1536",
        "data.rows_per_device=2",
        "save_every=3",
        "eval_every=null",
        "max_steps=12",
        "+callbacks.weights._target_=lightning.pytorch.callbacks.ModelCheckpoint",
        "+callbacks.weights.save_weights_only=true",
        "+callbacks.weights.every_n_train_steps=12",
        *CALM,
    ]
    whole = trained(tmp_path, *words, "run_name=whole")
    words += ["run_name=moved", "resume=auto"]
    run, ranks = ranks_of(tmp_path, *words, "trainer.devices=2")
    checkpoints = RunCheckpoints(run / "checkpoints")
    assert killed(ranks, lambda: bool(checkpoints.steps()), 0.0)
    words += ["trainer.devices=3", "trainer.strategy=fsdp", "checkpoints.asynchronous=true"]
    assert trained(tmp_path, *words) == run
    assert [gap(a, b) < 1e-5 for a, b in zip(end_of(run), end_of(whole), strict=True)] == [True] * 2
    mine, other = losses(run), losses(whole)
    assert sorted(mine) == sorted(other)
    assert all(abs(float(mine[s]) - float(other[s])) < 1e-4 for s in mine)
    assert len(list(checkpoints.path(12).glob("trainer/optim-*.safetensors"))) == 3
    (alone,) = (run / "weights").iterdir()  # of ranks that have rows, without their state
    assert gap(checkpoint_folder.read_weights(alone), end_of(run)[0]) == 0
