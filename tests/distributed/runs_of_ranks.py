"""Whole runs on several ranks, forked from a process that has imported what a run imports: composed
once, then each rank trains as `python -m nanochat.train` has it do."""

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from nanochat import distributed
from nanochat.checkpoint import folder as checkpoint_folder
from nanochat.checkpoint.runs import RunCheckpoints
from nanochat.commands.schema import settings_of
from nanochat.runs.fit import fit
from nanochat.runs.recipe import build_recipe
from nanochat.runs.run_folder import RunFolder, open_run
from nanochat.runs.start import prepare
from nanochat.runtime.settings import check
from tests.configs.test_every_yaml import composed
from tests.processes import SERVER


def ranks_of(base: Path, *words: str) -> tuple[Path, list[BaseProcess]]:
    """The folder of the run that `words` describe, and its ranks, which have begun. `base` is
    its NANOCHAT_BASE_DIR."""
    os.environ["NANOCHAT_BASE_DIR"] = str(base)
    config = composed(*words)
    recipe = build_recipe(check(config, settings_of("train", config)))
    recipe.check()
    folder = open_run(recipe.config, base / "runs")
    prepare(recipe, folder)
    folder.lock.close()  # the ranks take it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(recipe.world_size):
        launcher = {
            "NANOCHAT_BASE_DIR": base,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": recipe.world_size,
            "LOCAL_WORLD_SIZE": recipe.world_size,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": 1,
        }
        environment = {name: str(value) for name, value in launcher.items()}
        args = (recipe.config, folder.path, folder.resumed, environment, recipe.world_size > 1)
        ranks.append(SERVER.Process(target=_train, args=args))
    for process in ranks:
        process.start()
    return folder.path, ranks


def _train(
    config: dict[str, Any], path: Path, resumed: bool, launcher: dict[str, str], several: bool
) -> None:
    os.setsid()
    os.environ.update(launcher if several else {"NANOCHAT_BASE_DIR": launcher["NANOCHAT_BASE_DIR"]})
    torch.set_num_threads(1)
    try:
        fit(build_recipe(config, path / "tokenizer"), RunFolder(path, resumed, None))
        distributed.close()
    except BaseException:
        (path / f"failed-{launcher['RANK']}").write_text(traceback.format_exc())
        os._exit(1)


def trained(base: Path, *words: str) -> Path:
    """The folder of a run that has come to its end."""
    path, ranks = ranks_of(base, *words)
    for rank in ranks:
        rank.join(400)
    failed = [file.read_text() for file in sorted(path.glob("failed-*"))]
    assert not failed and all(rank.exitcode == 0 for rank in ranks), "\n".join(failed)
    return path


def killed(ranks: list[BaseProcess], when: Callable[[], bool], seconds: float) -> bool:
    """SIGKILL to all ranks `seconds` after `when` is first true; False if they had ended."""
    while not when() and any(rank.is_alive() for rank in ranks):
        time.sleep(0.002)
    time.sleep(seconds)
    alive = [rank for rank in ranks if rank.is_alive()]
    for rank in alive:
        os.kill(rank.pid, signal.SIGKILL)  # type: ignore[arg-type]
    for rank in ranks:
        rank.join()
    return bool(alive)


def end_of(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of the last checkpoint of a run, and the state of its optimizer by name, that
    of all ranks together."""
    checkpoints = RunCheckpoints(run / "checkpoints")
    last = checkpoints.path(checkpoints.steps()[-1])
    state = checkpoint_folder.read_state(last)["optimizer_states"][0]
    by_name = {
        name: state["state"].get(number, {})
        for group in state["param_groups"]
        for name, number in zip(group["names"], group["params"], strict=True)
    }
    return checkpoint_folder.read_weights(last), by_name


def gap(mine: Any, other: Any) -> float:
    """The largest difference between two dicts of tensors and numbers; infinite where they
    are not of one shape."""
    if isinstance(mine, dict):
        if mine.keys() != other.keys():
            return float("inf")
        return max((gap(value, other[key]) for key, value in mine.items()), default=0.0)
    a, b = torch.as_tensor(mine), torch.as_tensor(other)
    return (
        float((a - b).abs().max())
        if a.shape == b.shape and a.numel()
        else float(a.shape != b.shape)
    )
