"""The parts of the GPU table that are not `make bench`: `python experiments/gpu/parts.py PART`.

Each prints rows of the table: what, here, what it is compared with, ratio. On a CPU (`DRY=1` or no
CUDA) the sizes are tiny, so that the script itself is tried.
"""

import csv
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from nanochat.gpt import attention, from_depth
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.measure import any_tokenizer, measure
from nanochat.runtime import hardware
from nanochat.runtime.paths import base_dir

DRY = os.environ.get("DRY") == "1" or not torch.cuda.is_available()
device = torch.device("cpu" if DRY else "cuda")
dtype = hardware.compute_dtype("auto", device)[0]


def row(what: str, here: object, other: object = "", ratio: object = "") -> None:
    print(f"| {what} | {here} | {other} | {ratio} | |", flush=True)


def back_ends() -> None:
    """Forward and backward pass of each against the definition in fp64, with windows and shared key
    heads; then its speed at the sizes of d12."""
    T = 256 if DRY else 2048
    sizes = {"H": 6, "G": 3, "D": 128, "T": T}
    for name in attention.BACKENDS:
        problem = attention.runnable(name, device, dtype) or attention.prove(
            name, device, dtype, **sizes, windows={None, T // 4}
        )
        row(f"attention={name} proven", problem or "yes", "yes")
        if problem or name == "reference":
            continue
        attention.prepare(name, T, {None, T // 4}, device)
        attend = torch.compile(attention.BACKENDS[name], dynamic=False, disable=DRY)
        for window in (None, T // 4):
            ms = 1000 * seconds_of_pass(attend, window, T)
            row(f"attention={name}, forward and backward, window {window}, ms", f"{ms:.3f}")


def seconds_of_pass(attend: attention.Attend, window: int | None, T: int) -> float:
    rows = 1 if DRY else 16
    q, k, v = (
        torch.randn(rows, T, 6, 128, device=device, dtype=dtype, requires_grad=True)
        for _ in range(3)
    )
    found = []
    for _ in range(3 if DRY else 20):
        wait()
        start = time.perf_counter()
        attend(q, k, v, window).sum().backward()
        wait()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def wait() -> None:
    if not DRY:
        torch.cuda.synchronize()


def recorded() -> None:
    """Tokens of the compiled and recorded steps against those of the plain ones, in fp32, where no
    rounding decides between two tokens."""
    for depth in (2,) if DRY else (4, 12):
        gpt = FrozenGPT.build(from_depth(depth, vocab_size=2048), device=device)
        tokenizer = any_tokenizer(2048)
        prompts = [[(7 * i + j) % 1700 for j in range(20 + 9 * i)] for i in range(4)]
        plain, made = (
            Engine(gpt, tokenizer, compile=how).generate(prompts, max_tokens=40, tools=False)
            for how in (False, True)
        )
        same = sum(a.ids == b.ids for a, b in zip(plain, made, strict=True))
        row(f"d{depth}: texts of recorded steps equal to plain ones", same, len(prompts))


def decode() -> None:
    """MBU of decoding; for one text of d20 70 % are wanted."""
    for depth, vocab in ((2, 2048),) if DRY else ((20, 65536), (12, 32768)):
        gpt = FrozenGPT.build(
            from_depth(depth, vocab_size=vocab), device=device, compute_dtype=dtype
        )
        found = measure(
            gpt,
            any_tokenizer(vocab),
            prompt_tokens=128 if DRY else 1024,
            decode_tokens=16 if DRY else 256,
            batches=[1, 8] if DRY else [1, 8, 64],
            temperature=0.0,
            repeats=1 if DRY else 2,
            compile=not DRY,
        )
        for one in found["sweep"]:
            mbu = "unknown" if one["mbu_percent"] is None else f"{one['mbu_percent']:.1f}"
            what = f"d{depth}: decoding {one['batch']} texts"
            wanted = "70" if depth == 20 and one["batch"] == 1 else ""
            row(f"{what}, MBU %", mbu, wanted)
            row(f"{what}, tokens/s", f"{one['tokens_per_second']:,.0f}")


def rl() -> None:
    """Seconds, memory and distance of engine and trainer of an RL step, from a model of a few
    steps."""
    depth, trainer = (2, "cpu") if DRY else (12, "1xgpu")
    short = "save_every=null eval_every=null sample.prompts=[] progress=none"
    start = f"+phase=base model=d{depth} trainer={trainer} data=pydocs tokenizer.vocab_size=4096"
    train(f"{start} model.sequence_len=512 batch_tokens=8192 max_steps=4 run_name=gpu-base {short}")
    answers = "rollout.questions=2 rollout.samples=4" if DRY else ""
    train(
        f"+phase=rl trainer={trainer} init_from=gpu-base@latest task=arithmetic force=true "
        f"max_steps=3 run_name=gpu-rl rollout.max_tokens={16 if DRY else 128} {answers} "
        "eval_at_start=false evals.pass_at_k.limit=4 preflight.questions=4 " + short
    )
    file = sorted((base_dir() / "runs" / "gpu-rl").glob("*/metrics.csv"))[-1]
    last = [x for x in csv.DictReader(file.open()) if x["train/loss"]][-1]
    for key in ("seconds/rollout", "seconds/update", "memory/update_gib", "rl/logprob_gap_max"):
        if last.get(key):
            row(f"RL step of d{depth}: {key}", f"{float(last[key]):.3g}")


def train(words: str) -> None:
    command = [sys.executable, "-m", "nanochat.train", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit((done.stderr or done.stdout).strip().splitlines()[-1])


def tests() -> None:
    """`pytest -m gpu`."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpt", "tests/inference"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    row("pytest -m gpu", (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1])


if __name__ == "__main__":
    torch.manual_seed(0)
    {f.__name__: f for f in (back_ends, recorded, decode, rl, tests)}[sys.argv[1]]()
