"""Our engine, the same measures as original.py: `python ours.py DEPTH VOCAB PROMPT DECODE THREADS`;
with COMPILE=1 in compiled steps, with BF16=1 in bf16, with DEVICE=cuda on a GPU."""

import json
import os
import random
import statistics
import sys
import time

import torch

from nanochat.gpt import from_depth
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.measure import any_tokenizer
from nanochat.inference.sampling import Sampling

depth, vocab, prompt, decode, threads = map(int, sys.argv[1:6])
torch.set_num_threads(threads)
dtype = torch.bfloat16 if os.environ.get("BF16") == "1" else torch.float32
device = os.environ.get("DEVICE", "cpu")
gpt = FrozenGPT.build(from_depth(depth, vocab_size=vocab), device=device, compute_dtype=dtype)
tokenizer, drawn = any_tokenizer(vocab), random.Random(0)


def ids() -> list[int]:
    return [drawn.randrange(vocab - 300) for _ in range(prompt)]


def run(prompts: list[list[int]], samples: int) -> tuple[float, list[float]]:
    """Seconds to the first token of all, and of each step after it."""
    rows = len(prompts) * samples
    engine = Engine(
        gpt, tokenizer, max_rows=rows, prefill_tokens=None, compile=os.environ.get("COMPILE") == "1"
    )
    for tokens in prompts:
        engine.submit(tokens, Sampling(temperature=0, max_tokens=decode, tools=False), samples)
    times = []
    while engine.busy:
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    return times[0], times[1:]


start = time.perf_counter()
run([ids()], 1)
run([ids()], 16)  # so that nothing is compiled for the first time below
print(
    json.dumps(
        {"what": "warm-up, 1 / seconds", "tokens_per_second": 1 / (time.perf_counter() - start)}
    )
)
for samples, label in ((1, "one text"), (16, "16 samples of one prompt")):
    first, steps = run([ids()], samples)
    found = {
        "what": label,
        "tokens_per_second": samples / statistics.median(steps),
        "first_token_seconds": first,
    }
    print(json.dumps(found), flush=True)
start = time.perf_counter()
run([ids() for _ in range(16)], 1)
rate = 16 * decode / (time.perf_counter() - start)
print(json.dumps({"what": "16 different prompts, wall", "tokens_per_second": rate}), flush=True)
