"""A run whose processes were started by torchrun or srun. Rank 0 composes and prepares the run and
passes it to the others. No process is started here. The launcher's ranks are put into torchrun's
variables, which Lightning reads.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nanochat.runs.run_folder import RunFolder
from nanochat.runtime import signals

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
KEY = "nanochat/run"
# guess: time limit for the other ranks while rank 0 builds a tokenizer and token shards
PATIENCE = timedelta(hours=6)


def take_environment(environment: Any = os.environ) -> bool:
    """Whether a launcher started this process as one of several. If so, torchrun's variables are
    set. If not, such variables are removed with a note, since Lightning and PyTorch would use them.
    """
    if (
        int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        and "TORCHELASTIC_RUN_ID" not in environment
    ):
        environment.update(of_slurm(environment))
    if "TORCHELASTIC_RUN_ID" in environment and int(environment.get("WORLD_SIZE", 1)) > 1:
        return True
    stray = [name for name in VARIABLES if name in environment]
    if stray and "TORCHELASTIC_RUN_ID" not in environment:
        given = " ".join(f"{name}={environment[name]}" for name in stray)
        print(
            (
                f"note: {given} is ignored, as neither torchrun nor srun started this process; "
                "trainer.devices=N trains on N"
            ),
            file=sys.stderr,
        )
    for name in stray:
        del environment[name]
    return False


def of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task of `srun`."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    tasks, job = int(environment["SLURM_STEP_NUM_TASKS"]), environment["SLURM_JOB_ID"]
    nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
    if tasks % nodes:
        raise ValueError(
            f"srun started {tasks} tasks on {nodes} nodes, and each node needs as many; use "
            "--ntasks-per-node"
        )
    # its constructor refuses `--ntasks`
    first = SLURMEnvironment.resolve_root_node_address(environment["SLURM_NODELIST"])
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": environment.get("SLURM_NODEID", "0"),
        "MASTER_ADDR": environment.get("MASTER_ADDR", first),
        # one for each job of a machine, and one more for the store
        "MASTER_PORT": environment.get("MASTER_PORT", str(15000 + int(job[-4:]))),
        "TORCHELASTIC_RUN_ID": f"slurm-{job}",
    }


def take_shape(cfg: DictConfig, typed: Callable[[str], list[str]], *, sweep: bool = False) -> None:
    """Set devices and num_nodes to what the launcher started. ValueError if other values were
    typed, or for a `sweep`."""
    if sweep:
        raise ValueError(
            "a sweep starts its processes itself: python -m nanochat.train -m … trainer.devices=N, "
            "without torchrun or srun"
        )
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    for key, value in (("devices", local), ("num_nodes", world // local)):
        if typed(rf"trainer\.{key}") and cfg.trainer[key] != value:
            raise ValueError(
                f"trainer.{key}={cfg.trainer[key]}, but the launcher started {local} processes on "
                f"each of {world // local} machines; drop trainer.{key}"
            )
        cfg.trainer[key] = value


def _store() -> Any:
    """torchrun's store, or one that rank 0 opens on the port after MASTER_PORT."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    first = os.environ["RANK"] == "0" and not agent
    return TCPStore(
        address,
        port if agent else port + 1,
        is_master=first,
        wait_for_workers=False,
        timeout=PATIENCE,
    )


class HandOver:
    """The message of rank 0 to the other ranks, sent once."""

    def __init__(self) -> None:
        self.store, self.told = _store(), False
        # a launcher that restarts a failed run keeps its store
        self.key = f"{KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self.world_size = int(os.environ["WORLD_SIZE"])

    def tell(self, folder: RunFolder | None, config: dict[str, Any] | None = None) -> None:
        """The run to train; None if there is nothing to train."""
        if self.told:
            return
        self.told = True
        run = folder and {"folder": str(folder.path), "resumed": folder.resumed, "config": config}
        self.store.set(self.key, json.dumps(run, default=str))
        # the store ends with this process, so the others must have read it first
        self.store.wait([f"{self.key}/{rank}" for rank in range(1, self.world_size)])

    def told_run(self) -> tuple[RunFolder, dict[str, Any]]:
        """On the other ranks: the run folder and the resolved config. Ends the process if
        there is nothing to train."""
        run = json.loads(self.store.get(self.key))
        self.store.set(f"{self.key}/{os.environ['RANK']}", "read")
        if run is None:
            sys.exit()
        return RunFolder(Path(run["folder"]), run["resumed"], None), run["config"]


def check_nodes(trainer: Mapping[str, Any]) -> None:
    """ValueError for several machines where no launcher has started the processes."""
    if (nodes := trainer["num_nodes"]) > 1:
        raise ValueError(
            f"trainer.num_nodes={nodes} needs a launcher on every machine: torchrun "
            f"--nnodes={nodes} --nproc_per_node={trainer['devices']} … -m nanochat.train …, or "
            "srun; dry_run=true needs none"
        )


def check_tasks() -> None:
    """ValueError for a trial that submitit has started several times: each would train it."""
    if (tasks := int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
        raise ValueError(
            f"{tasks} tasks would each train this trial; leave hydra.launcher.tasks_per_node at 1: "
            "the processes of a trial are trainer.devices=N"
        )


def requeue(resume: str | bool) -> bool:
    """After SIGUSR1 or SIGUSR2, which Slurm sends ahead of a job's end if asked to (`#SBATCH
    --signal=USR1@120`): put the job into the queue again. Whether it was."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not {signal.SIGUSR1, signal.SIGUSR2} & set(signals.received):
        return False
    if resume != "auto":
        print(f"job {job} ends here: with resume=auto it would be queued again and go on")
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, encoding="utf-8")
    failed = f"scontrol requeue {job} failed: {done.stderr.strip()}; submit it again"
    said = f"job {job} was put into the queue again" if done.returncode == 0 else failed
    print(said, flush=True)
    return done.returncode == 0
