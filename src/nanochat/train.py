"""Train a model: `python -m nanochat.train +phase=base model=d20 trainer=8xh100`.

Compose (Hydra, once), build (runs/job.py), call. With several devices the parent composes, prints the plan and starts one
process per device, which reads the resolved config from the run folder. Heavy imports wait until the words are understood.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.runs.launch import RANK_OF, is_rank
from nanochat.runtime.app import command, one_line, overridden, stop, trial_folder


def run(cfg: DictConfig) -> float | None:
    """One run or one trial of a sweep. Returns the last val/bpb, which is what a sweeper minimises."""
    from nanochat.runs.job import Job
    from nanochat.runs.launch import run_ranks
    from nanochat.runs.run_folder import open_run
    from nanochat.runtime.paths import base_dir

    if missing := sorted(OmegaConf.missing_keys(cfg), key=lambda key: (key != "phase", key)):
        raise ValueError(f"Missing mandatory value: {missing[0]}")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    job = Job(config)
    if job.parent is not None and (words := overridden("model") + overridden("arch") + overridden("tokenizer")):
        raise ValueError(
            f"{words[0]} cannot take effect: init_from={config['init_from']} brings its own model and tokenizer; drop one of the two"
        )
    job.check()
    job.print_plan()
    if config["dry_run"]:
        print("dry_run=true: nothing was trained")
        return None
    folder = open_run(config, base_dir() / "runs", folder=trial_folder())
    if job.is_finished(folder):
        return job.last_result(folder)
    job.prepare(folder)
    if job.world_size == 1:
        return job.train(folder)
    code = run_ranks(folder.path, job.world_size)
    if code:
        raise ValueError(
            f"a process of the run failed with exit code {code}; what it said is above, the run is in {folder.path}"
        )
    return job.last_result(folder)


def rank_main() -> None:
    """What every process of several does: no Hydra, no folder of its own, no output but rank 0's."""
    from nanochat.runs.job import Job
    from nanochat.runs.run_folder import RunFolder, read_config

    path, rank = Path(os.environ[RANK_OF]), int(os.environ["RANK"])
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stdout, force=True
    )
    try:
        Job(read_config(path), path / "tokenizer").train(RunFolder(path, resumed=True, lock=None))
    except (ValueError, OSError) as error:
        stop(one_line(error) if rank == 0 else f"rank {rank}: {one_line(error)}")


main = command("train", run)

if __name__ == "__main__":
    rank_main() if is_rank() else main()
