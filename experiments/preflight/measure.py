"""The predicted peak of memory and the measured one: `experiments/preflight/measure.py [WORD …]`.

Each line is a real run of two steps, evaluation and saving included, on the text of a file, in
processes of its own that are forked from this one. Measured is the memory of the first of them at
its peak, above that before the network was built, without what is mapped from files. Large
allocations of the C library are given back as they are freed (MALLOC_MMAP_THRESHOLD_); with the
word `holes` they are not, and the peak is also that of holes in its heap. Other words: only the
runs that have all of them.
"""

import multiprocessing
import os
import socket
import sys
from typing import Any

import torch
from omegaconf import OmegaConf

from nanochat.commands.configs import compose_command
from nanochat.commands.schema import settings_of
from nanochat.runs.fit import fit
from nanochat.runs.recipe import Recipe, build_recipe
from nanochat.runs.run_folder import RunFolder, open_run, read_record
from nanochat.runs.start import prepare
from nanochat.runtime.paths import base_dir
from nanochat.runtime.settings import check

COMMON = (
    "+phase=base data=local data.path=docs/nanochat-facts.md data.documents=paragraph "
    "data.num_workers=0 max_steps=2 eval_every=null eval_tokens=4096 save_every=null "
    "sample.prompts=[] progress=none compute.compile=false compute.precision=fp32 "
    "model.aspect_ratio=32 model.head_dim=32"  # narrow: more bytes for less work
)
ONE, DDP, FSDP = (f"trainer={name}" for name in ("cpu", "cpu_ddp", "cpu_fsdp"))
RUNS = (
    f"{ONE} model=d4 arch=modern rows=16 batch=16 checkpointing=auto",
    f"{ONE} model=d4 arch=modern rows=8 batch=16 checkpointing=auto",
    f"{ONE} model=d4 arch=classic rows=16 batch=16 checkpointing=attention",
    f"{ONE} model=d6 arch=modern rows=8 batch=8 checkpointing=attention",
    f"{ONE} model=d6 arch=classic rows=8 batch=8 checkpointing=auto",
    f"{ONE} model=d6 arch=modern rows=16 batch=16 checkpointing=block",
    f"{ONE} model=d8 arch=modern rows=4 batch=4 checkpointing=auto",
    f"{ONE} model=d8 arch=classic rows=8 batch=8 checkpointing=block",
    f"{DDP} model=d4 arch=modern rows=8 batch=16 checkpointing=auto",
    f"{DDP} model=d8 arch=modern rows=1 batch=4 checkpointing=auto",
    f"{DDP} model=d6 arch=classic rows=8 batch=16 checkpointing=block",
    f"{FSDP} model=d4 arch=modern rows=8 batch=16 checkpointing=auto",
    f"{FSDP} model=d8 arch=modern rows=1 batch=4 checkpointing=auto",
    f"{FSDP} model=d6 arch=classic rows=8 batch=16 checkpointing=block",
)
CONTEXT = 512  # of size=laptop, which trainer=cpu takes
SHORT = {
    "rows": lambda n: [f"data.rows_per_device={n}"],
    "batch": lambda n: [f"batch_tokens={int(n) * CONTEXT}"],
    "checkpointing": lambda kind: [f"compute.checkpointing={kind}"],
}


def typed(word: str) -> list[str]:
    key, _, value = word.partition("=")
    return SHORT[key](value) if key in SHORT else [word]


def rank_main(rank: int, port: int, recipe: Recipe, folder: RunFolder) -> None:
    """One process of a run."""
    world = str(recipe.world_size)
    if recipe.world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0")
        os.environ.update(WORLD_SIZE=world, LOCAL_WORLD_SIZE=world)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    fit(build_recipe(recipe.config, folder.path / "tokenizer"), folder)


def run(words: list[str]) -> tuple[int, int]:
    """Bytes of the predicted and of the measured peak."""
    composed: Any = OmegaConf.to_container(compose_command("train", words), resolve=True)
    config = check(composed, settings_of("train", composed))
    recipe = build_recipe(config)
    recipe.check()
    recipe.choose_by_forecast()
    folder = open_run(config, base_dir() / "runs")
    prepare(recipe, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forks = multiprocessing.get_context("fork")
    ranks = [
        forks.Process(target=rank_main, args=(rank, port, recipe, folder))
        for rank in range(recipe.world_size)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    record = read_record(folder)
    return record["forecast"]["peak_bytes"], record["outcome"]["peak_bytes"]


def main(wanted: list[str]) -> None:
    if "holes" not in wanted and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**17), OMP_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    torch.set_num_threads(1)
    print("| run | predicted MB | measured MB | error |\n|---|---|---|---|")
    for number, line in enumerate(RUNS):
        if not set(wanted) - {"holes"} <= set(line.split()):
            continue
        words = [one for word in line.split() for one in typed(word)]
        name = f"run_name=preflight-{os.getpid()}-{number}"
        predicted, measured = run([*COMMON.split(), *words, name])
        print(
            f"| {line} | {predicted / 1e6:.0f} | {measured / 1e6:.0f} | "
            f"{100 * (predicted / measured - 1):+.1f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
