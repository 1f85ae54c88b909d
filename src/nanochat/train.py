"""Train a model: `python -m nanochat.train +phase=base model=d20 trainer=8xh100`.

Compose (Hydra, once), build (runs/job.py), call. With several devices the parent composes, prints the plan and starts one
process per device, which is handed the resolved config. Heavy imports wait until the words are understood.
"""

import logging
import os
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.runs.launch import is_rank
from nanochat.runtime.app import command, one_line, overridden, plain_config, stop, trial_folder
from nanochat.runtime.schema import Train
from nanochat.runtime.settings import check


def run(cfg: DictConfig) -> float | None:
    """One run or one trial of a sweep. Returns the last val/bpb, which is what a sweeper minimises."""
    from nanochat.checkpoint.runs import lasting_name, resolve
    from nanochat.runs import parent
    from nanochat.runs.fit import fit
    from nanochat.runs.launch import run_ranks
    from nanochat.runs.run_folder import check_resume, open_run
    from nanochat.runtime.paths import base_dir

    inherited: parent.Inherited = []
    if cfg.init_from:
        checkpoint = resolve(cfg.init_from, base_dir() / "runs")
        parent.take_sizes(cfg, checkpoint, overridden)
        inherited = parent.inherit(cfg, checkpoint, overridden, plain_config("train"))
        cfg.init_from = lasting_name(checkpoint, base_dir() / "runs")  # @latest may be another tomorrow
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config = check(config, Train)  # what came from the parent too
    absolute_paths(config)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    job = build_job(config)
    job.check()
    for key, why in job.no_effect().items():
        if words := overridden(key):
            raise ValueError(f"{words[0]} cannot take effect: {why}")
    job.check_length()
    job.print_plan(inherited)
    check_resume(config["resume"], base_dir() / "runs")
    if config["dry_run"]:
        print("dry_run=true: nothing was trained")
        return None
    passing = (
        TemporaryDirectory(prefix="nanochat-") if config["trainer"].get("fast_dev_run") else None
    )  # nothing is kept
    folder = open_run(config, base_dir() / "runs", folder=Path(passing.name) / "run" if passing else trial_folder())
    job.check_plan(folder)
    if job.is_finished(folder):
        return job.last_result(folder)
    job.prepare(folder)
    told = fit(job, folder) if job.world_size == 1 else run_ranks(folder, config, job.world_size)
    result = job.last_result(folder)
    if trial_folder() and told:  # and so is the sweep
        raise KeyboardInterrupt(
            f"the sweep ends with this trial; the same command with resume=auto and hydra.sweep.dir='{folder.path.parent}' goes on"
        )
    return result


def absolute_paths(config: dict[str, Any]) -> None:
    """Make the paths of data and tasks independent of where this was typed, for whoever reads the config elsewhere."""
    data = config["data"]
    tasks = [*(data.get("train_tasks") or {}).values(), *(data.get("val_tasks") or {}).values()]
    tasks += [*(config["tasks"]["of"] or {}).values(), config.get("task"), config.get("val_task")]
    for settings in (data, *(task for task in tasks if task)):
        for key in ("path", "val_path", "shards_dir", "rendered_dir"):
            # a task's path may be a word with a meaning of its own
            if settings.get(key) and (settings is data or Path(settings[key]).expanduser().exists()):
                settings[key] = str(Path(settings[key]).expanduser().absolute())


def build_job(config: dict[str, Any], tokenizer_folder: Path | None = None) -> Any:
    """The run that a composed config describes: on text, on conversations, or on questions."""
    from nanochat.runs.chat_job import ChatJob, is_chat
    from nanochat.runs.rl_job import RLJob, is_rl
    from nanochat.runs.text_job import TextJob

    kind = RLJob if is_rl(config) else ChatJob if is_chat(config) else TextJob
    return kind(config, tokenizer_folder)


def rank_main() -> None:
    """What every process of several does: no Hydra, no folder of its own, no output but rank 0's."""
    from nanochat import distributed
    from nanochat.runs.fit import fit
    from nanochat.runs.launch import read_launch, trace_file
    from nanochat.runtime.signals import StopAtOnce, end_undisturbed, stop_with_parent, take_ctrl_c

    rank = int(os.environ["RANK"])
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR, format="%(message)s", stream=sys.stdout, force=True
    )
    stop_with_parent()
    take_ctrl_c()
    folder = None
    try:
        folder, config = read_launch()
        fit(build_job(config, folder.path / "tokenizer"), folder)
        distributed.close()
        end_undisturbed()
    except (ValueError, OSError) as error:
        stop(one_line(error) if rank == 0 else f"rank {rank}: {one_line(error)}")
    except (KeyboardInterrupt, StopAtOnce):
        end_undisturbed()
        sys.exit(130)  # said by the process that started the ranks
    except Exception:
        if folder is None:
            raise
        trace_file(folder.path, rank).write_text(traceback.format_exc())
        sys.exit(1)


main = command("train", run)

if __name__ == "__main__":
    rank_main() if is_rank() else main()
