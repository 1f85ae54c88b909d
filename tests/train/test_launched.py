"""Processes that torchrun or srun has started: what is read of the environment,
and one run of theirs."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nanochat.runs.launched import check_nodes, take_environment, take_shape
from tests.distributed.runs_of_ranks import end_of, gap, trained
from tests.train.conftest import environment, losses, the_run
from tests.train.stopping import until_some_steps

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "none",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_stray_rank_is_removed_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Today's shells keep them after an interrupted debugging session, and
    Lightning believes them."""
    shell = {"RANK": "1", "WORLD_SIZE": "2", "HOME": "/"}
    assert not take_environment(shell) and shell == {"HOME": "/"}
    assert "note: RANK=1 WORLD_SIZE=2 is ignored" in capsys.readouterr().err


def test_one_process_of_a_launcher_is_a_plain_one(capsys: pytest.CaptureFixture[str]) -> None:
    alone = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}
    assert not take_environment(alone) and "RANK" not in alone and not capsys.readouterr().err


def test_torchruns_ranks_are_respected() -> None:
    assert take_environment(given := dict(TORCHRUN)) and given == TORCHRUN


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("MASTER_ADDR", "MASTER_PORT", *SRUN, *TORCHRUN):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    return monkeypatch


def test_tasks_of_srun_are_ranks(clean: pytest.MonkeyPatch) -> None:
    for name, value in SRUN.items():
        clean.setenv(name, value)
    assert take_environment()
    found = {name: os.environ[name] for name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT")}
    given = {"TORCHELASTIC_RUN_ID": "slurm-123456", "MASTER_ADDR": "gpu07", "MASTER_PORT": "18456"}
    assert found == {**TORCHRUN, **given}
    for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        clean.delenv(name)


def test_a_batch_script_is_one_process() -> None:
    """`sbatch --ntasks=4` runs its script once; the variables of the job are not those of a
    step."""
    assert not take_environment({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"})


def test_devices_follow_the_launcher(clean: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        clean.setenv(name, value)
    cfg = OmegaConf.create({"trainer": {"devices": 8, "num_nodes": 1}})
    take_shape(cfg, lambda key: [])
    assert dict(cfg.trainer) == {"devices": 2, "num_nodes": 2}
    cfg.trainer.devices = 8
    with pytest.raises(
        ValueError, match=r"devices=8, but the launcher started 2 .* each of 2 mach"
    ):
        take_shape(cfg, lambda key: ["trainer.devices=8"] if "devices" in key else [])


def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(ValueError, match=r"torchrun --nnodes=2 --nproc_per_node=8 .*srun"):
        check_nodes({"num_nodes": 2, "devices": 8})


@pytest.mark.slow  # two processes of the command, twice
def test_tasks_of_srun_train_one_run_and_go_on_when_requeued(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulated Slurm: what srun sets, for two tasks of one node. Preempted by SIGUSR1 they save,
    and the first asks for the queue. Started again they end as a run that was left alone."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\n')
    scontrol.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    steps = 60
    words = ["save_every=null", "eval_every=null", f"max_steps={steps}", "log_every=1"]

    def tasks(**more: str) -> list["subprocess.Popen[bytes]"]:
        own = [*tiny, "run_name=slurm", *words, "resume=auto"]
        return [
            subprocess.Popen(
                [sys.executable, "-m", "nanochat.train", *own],
                env=environment(
                    tmp_path,
                    **SRUN
                    | {
                        "SLURM_STEP_NUM_TASKS": "2",
                        "SLURM_STEP_NUM_NODES": "1",
                        "SLURM_PROCID": str(rank),
                        "SLURM_LOCALID": str(rank),
                        "SLURM_NODEID": "0",
                        "SLURM_NODELIST": "127.0.0.1",
                        "MASTER_PORT": str(port),
                        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
                    },
                    **more,
                ),
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank in (0, 1)
        ]

    started = tasks()
    until_some_steps(tmp_path, "slurm")
    for task in started:
        task.send_signal(10)  # SIGUSR1
    said = [task.communicate(timeout=300)[0].decode() for task in started]
    assert [task.returncode for task in started] == [0, 0], said
    assert "put into the queue again" in said[0] and not said[1]
    assert (tmp_path / "scontrol").read_text() == "requeue 123456\n"
    run = the_run(tmp_path, "slurm")
    assert 3 <= max(losses(run)) < steps
    again = tasks(SLURM_RESTART_COUNT="1")
    said = [task.communicate(timeout=300)[0].decode() for task in again]
    assert [task.returncode for task in again] == [0, 0] and "resuming" in said[0], said
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    alone = trained(tmp_path, *tiny, *words, "run_name=alone", "trainer.devices=2")
    assert losses(the_run(tmp_path, "slurm")) == losses(alone)
    assert [gap(a, b) for a, b in zip(end_of(run), end_of(alone), strict=True)] == [0, 0]
    assert (tmp_path / "scontrol").read_text() == "requeue 123456\n"
