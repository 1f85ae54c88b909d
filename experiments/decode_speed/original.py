"""The original's engine on fresh weights: `python original.py DEPTH VOCAB PROMPT DECODE THREADS`,
run with its source on PYTHONPATH.

Prints one JSON line per measure: one text, 16 samples of one prompt, and 16 different prompts,
which it takes one after another.
"""

import json
import os
import statistics
import sys
import time

import torch
from nanochat.engine import Engine

from nanochat.gpt import GPT, GPTConfig

depth, vocab, prompt, decode, threads = map(int, sys.argv[1:6])
torch.set_num_threads(threads)


class Specials:
    """As much of a tokenizer as the engine asks for; none of these ids is ever sampled."""

    def encode_special(self, name):
        return -1 - len(name)

    def get_bos_token_id(self):
        return -1


width = -(-64 * depth // 128) * 128
config = GPTConfig(
    sequence_len=2048,
    vocab_size=vocab,
    n_layer=depth,
    n_head=width // 128,
    n_kv_head=width // 128,
    n_embd=width,
)
with torch.device("meta"):
    model = GPT(config)
model.to_empty(device=os.environ.get("DEVICE", "cpu"))
model.init_weights()
model.eval()
engine = Engine(model, Specials())
drawn = torch.Generator().manual_seed(0)


def ids():
    return torch.randint(vocab - 300, (prompt,), generator=drawn).tolist()


def run(samples):
    """Seconds per step after the first, and to the first."""
    times, start = [], time.perf_counter()
    for _ in engine.generate(ids(), num_samples=samples, max_tokens=decode, temperature=0):
        now = time.perf_counter()
        times.append(now - start)
        start = now
    return times[0], times[1:]


run(1)
for rows, label in ((1, "one text"), (16, "16 samples of one prompt")):
    first, steps = run(rows)
    step = statistics.median(steps)
    print(
        json.dumps({"what": label, "tokens_per_second": rows / step, "first_token_seconds": first}),
        flush=True,
    )
start = time.perf_counter()
for _ in range(4):
    run(1)
print(
    json.dumps(
        {
            "what": "16 different prompts, wall",
            "tokens_per_second": 4 * decode / (time.perf_counter() - start),
        }
    ),
    flush=True,
)
