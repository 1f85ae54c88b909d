"""Train a model: `python -m nanochat.train +phase=base model=d20 trainer=8xh100`.

Compose (Hydra, once), build (the phase's recipe, runs/), call. With several devices the parent
composes, prints the plan and starts one process per device, which is handed the resolved config;
where torchrun or srun has started them, the first composes and hands it to the others. Heavy
imports wait until the words are understood.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command, overridden, stop, trial_folder
from nanochat.commands.configs import compose_command
from nanochat.commands.errors import one_line
from nanochat.commands.schema import settings_of
from nanochat.runs.launch import is_rank, read_launch
from nanochat.runs.launched import HandOver, check_tasks, take_environment, take_shape
from nanochat.runs.run_folder import RunFolder
from nanochat.runtime.settings import check

others: HandOver | None = None  # the processes that a launcher has started besides this one


def settled(cfg: DictConfig) -> tuple[dict[str, Any], Any]:
    """The settings of a run as plain values, checked, and which of them its parent gave."""
    from nanochat.checkpoint.runs import described, lasting_name, resolve
    from nanochat.runs import parent
    from nanochat.runtime.paths import base_dir

    if others is not None:
        take_shape(cfg, overridden, sweep=trial_folder() is not None)
    elif trial_folder():
        check_tasks()
    inherited: parent.Inherited = []
    if cfg.init_from:
        checkpoint = resolve(cfg.init_from, base_dir() / "runs")
        print(described(checkpoint), file=sys.stderr)
        parent.take_sizes(cfg, checkpoint, overridden)
        inherited = parent.inherit(cfg, checkpoint, overridden, compose_command("train"))
        # @latest may be another tomorrow
        cfg.init_from = lasting_name(checkpoint, base_dir() / "runs")
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    config = check(config, settings_of("train", config))  # what came from the parent too
    absolute_paths(config)
    return config, inherited


def run(cfg: DictConfig) -> float | None:
    """One run or one trial of a sweep. Returns the last val/bpb, which is what a sweeper
    minimises."""
    from nanochat import distributed
    from nanochat.runs import solve, start
    from nanochat.runs.fit import fit
    from nanochat.runs.launch import run_ranks
    from nanochat.runs.launched import check_nodes, requeue
    from nanochat.runs.recipe import build_recipe
    from nanochat.runs.run_folder import check_resume, open_run
    from nanochat.runtime.paths import base_dir

    config, inherited = settled(cfg)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    solve.check(config, overridden)
    config, answer = solve.solved(config) if config["solve"] else (config, None)
    recipe = build_recipe(config)
    recipe.check()
    for key, why in recipe.no_effect().items():
        if words := overridden(key):
            raise ValueError(f"{words[0]} cannot take effect: {why}")
    recipe.check_length()
    recipe.choose_by_forecast()
    recipe.print_plan(inherited)
    check_resume(config["resume"], base_dir() / "runs")
    if others is None and not config["dry_run"]:
        check_nodes(config["trainer"])
    if answer:
        print(answer)
    if config["dry_run"]:
        print("dry_run=true: nothing was trained")
        return None
    passing = (
        TemporaryDirectory(prefix="nanochat-") if config["trainer"].get("fast_dev_run") else None
    )  # nothing is kept
    folder = open_run(
        config,
        base_dir() / "runs",
        folder=Path(passing.name) / "run" if passing else trial_folder(),
    )
    start.check_plan(recipe, folder)
    if start.is_finished(recipe, folder):
        return start.last_result(recipe, folder)
    start.prepare(recipe, folder)
    if others is not None:
        others.tell(folder, config)
    here = others is not None or recipe.world_size == 1
    told = fit(recipe, folder) if here else run_ranks(folder, config, recipe.world_size)
    distributed.close()
    if told and requeue(config["resume"]) and trial_folder():
        sys.exit()  # without a result, for which submitit's sweep waits
    result = start.last_result(recipe, folder)
    if trial_folder() and told:  # and so is the sweep
        raise KeyboardInterrupt(
            "the sweep ends with this trial; the same command with resume=auto and "
            f"hydra.sweep.dir='{folder.path.parent}' goes on"
        )
    return result


PATHS = ("path", "val_path", "shards_dir", "rendered_dir")


def absolute_paths(config: dict[str, Any]) -> None:
    """Make the paths of data and tasks independent of the current directory, for ranks and for a
    later resume."""

    def walk(node: dict[str, Any]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value)
            # a task's path may be a word with a meaning instead
            elif (
                key in PATHS
                and value
                and (node is config["data"] or Path(value).expanduser().exists())
            ):
                node[key] = str(Path(value).expanduser().absolute())

    walk({name: group for name, group in config.items() if name != "tokenizer"})


def rank_main(start: Callable[[], tuple[RunFolder, dict[str, Any]]], *, child: bool) -> None:
    """What every process of several does: no Hydra, no folder of its own, no output but rank 0's.

    `start` gives the run; `child`: of a process that has composed it, and reports the errors of its
    ranks.
    """
    from nanochat import distributed
    from nanochat.runs.fit import fit
    from nanochat.runs.launch import SAID, trace_file
    from nanochat.runs.recipe import build_recipe
    from nanochat.runtime.signals import StopAtOnce, end_undisturbed, stop_with_parent, take_ctrl_c

    rank = int(os.environ["RANK"])
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR,
        format="%(message)s",
        stream=sys.stdout,
        force=True,
    )
    if child:
        stop_with_parent()
    take_ctrl_c()
    folder = None
    try:
        folder, config = start()
        fit(build_recipe(config, folder.path / "tokenizer"), folder)
        distributed.close()
        end_undisturbed()
    except (ValueError, OSError) as error:
        stop(one_line(error) if rank == 0 else f"rank {rank}: {one_line(error)}")
    except (KeyboardInterrupt, StopAtOnce):
        end_undisturbed()
        sys.exit(130)  # said by the process that started the ranks
    except distributed.FailedElsewhere:
        sys.exit(SAID)
    except Exception:
        if folder is None or not child:
            raise
        trace_file(folder.path, rank).write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)


def launched_main() -> None:
    """One of the processes that torchrun or srun has started: the first is the command, the others
    wait for what it makes of its words."""
    global others
    others = HandOver()
    if os.environ["RANK"] != "0":
        return rank_main(others.told_run, child=False)
    try:
        main()
    finally:
        others.tell(None)


main = command("train", run)

if __name__ == "__main__":
    if is_rank():
        rank_main(read_launch, child=True)
    elif take_environment():
        launched_main()
    else:
        main()
