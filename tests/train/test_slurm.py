"""A real Slurm, where there is one (experiments/slurm/one_node.sh starts one of this machine), and
the job script of a sweep through submitit."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import processes
from tests.train.conftest import environment, losses, the_run
from tests.train.stopping import until_some_steps

pytestmark = pytest.mark.slow
STEPS = 120
LAUNCHER = "hydra/launcher=submitit_slurm"


@pytest.fixture
def slurm() -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("no Slurm here: apt-get install slurm-wlm munge, experiments/slurm/one_node.sh")
    try:
        asked = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        pytest.skip("the controller of Slurm does not answer")
    if "is UP" not in asked.stdout:
        pytest.skip(f"the controller of Slurm does not answer: {asked.stdout}{asked.stderr}")


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    """Those of a run of seconds, on the machine that Slurm gives."""
    given = ["trainer=slurm", "trainer.accelerator=cpu", "size=laptop"]
    mine = [word for word in tiny if word != "trainer=cpu" and not word.startswith("save_every")]
    return [
        *mine,
        *given,
        "resume=auto",
        "save_every=null",
        "eval_every=null",
        f"max_steps={STEPS}",
    ]


def state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED …; empty once Slurm has forgotten it."""
    line = ["scontrol", "--oneliner", "show", "job", job]
    found = re.search(
        r"JobState=(\w+)", subprocess.run(line, capture_output=True, text=True).stdout
    )
    return found[1] if found else ""


def until(what: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def submitted(script: Path, base: Path, *options: str) -> str:
    env = environment(base)
    line = ["sbatch", "--parsable", "--requeue", f"--output={base}/log", *options, str(script)]
    done = subprocess.run(line, env=env, cwd=base, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_two_tasks_are_one_run_which_goes_on_when_it_is_queued_again(
    slurm: None, words: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    line = " ".join([sys.executable, "-m", "nanochat.train", *words, "run_name=queued"])
    script.write_text(f"#!/bin/sh\nsrun {line}\n")
    job = submitted(script, tmp_path, "--ntasks=2", "--open-mode=append")
    until_some_steps(tmp_path, "queued")
    subprocess.run(["scancel", "--signal=USR1", job], check=True)  # to its tasks, as --signal does
    until(lambda: "put into the queue again" in (tmp_path / "log").read_text())
    until(lambda: state(job) not in ("RUNNING", "COMPLETING"))
    before = max(losses(the_run(tmp_path, "queued")))
    assert before < STEPS
    until(lambda: state(job) in ("COMPLETED", ""))
    said = (tmp_path / "log").read_text()
    assert sorted(losses(the_run(tmp_path, "queued"))) == [*range(1, STEPS + 1)], said[-3000:]
    assert f"after step {before}" in said and "2 processes" in said


def test_the_job_script_of_a_sweep(tiny: list[str], tmp_path: Path) -> None:
    """`sbatch` stands in, keeps the script and refuses it, as a partition that is not there is."""
    pytest.importorskip("submitit", reason="pip install 'nanochat[cluster]'")
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun"):
        file = tmp_path / "bin" / name
        file.write_text(
            f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho invalid partition >&2\nexit 1\n'
        )
        file.chmod(0o755)
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    given = ["-m", *tiny, "seed=1,2", "run_name=away", LAUNCHER, "hydra.launcher.partition=long"]
    more = ["hydra.launcher.timeout_min=90", "hydra.launcher.gpus_per_node=8", "resume=auto"]
    done = processes.run(
        ["nanochat.train", *given, *more], env=environment(tmp_path, **path), cwd=tmp_path
    )
    script = (tmp_path / "script").read_text()
    options = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script))
    wanted = {"array": "0-1%2", "partition": "long", "time": "90", "gpus-per-node": "8"}
    assert wanted.items() <= options.items(), script
    assert options["ntasks-per-node"] == "1" and options["signal"].startswith("USR2@")
    assert re.search(rf"^srun .*{re.escape(sys.executable)} .*submitit", script, re.M), script
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "invalid partition" in done.stderr


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        (LAUNCHER, "hydra/launcher=submitit_slurm needs Slurm (sbatch), and there is none here"),
        ("hydra/sweeper=ax", "hydra/sweeper=ax is not installed; pip install 'nanochat[sweep]'"),
    ],
)
def test_a_plugin_that_is_not_here_is_one_line(
    launcher: str, said: str, tiny: list[str], tmp_path: Path
) -> None:
    done = processes.run(
        ["nanochat.train", "-m", *tiny, launcher, "seed=1"],
        env=environment(tmp_path, PATH=str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 2 and f"error: {said}" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
