"""The original's rollout loop on fresh weights: `python throughput_original.py QUESTIONS MOST
THREADS`, with its source on PYTHONPATH.

One question after another, 16 answers each, 8 at a time. Prints sampled tokens per second. Prompts
have 40 to 160 tokens.
"""

import json
import sys
import time

import torch
from nanochat.engine import Engine

from nanochat.gpt import GPT, GPTConfig

questions, most, threads = map(int, sys.argv[1:4])
torch.set_num_threads(threads)


class Specials:
    def encode_special(self, name):
        return 8000 if name == "<|assistant_end|>" else -1 - len(name)

    def get_bos_token_id(self):
        return -1


with torch.device("meta"):
    model = GPT(
        GPTConfig(sequence_len=2048, vocab_size=8192, n_layer=4, n_head=2, n_kv_head=2, n_embd=256)
    )
model.to_empty(device="cpu")
model.init_weights()
model.eval()
engine = Engine(model, Specials())
drawn = torch.Generator().manual_seed(0)
prompts = [
    torch.randint(7000, (int(n),), generator=drawn).tolist()
    for n in torch.linspace(40, 160, questions)
]
engine.generate_batch(prompts[0][:40], num_samples=8, max_tokens=8, temperature=1.0, top_k=50)
start, tokens = time.perf_counter(), 0
for prompt in prompts:
    for part in range(2):
        rows, _ = engine.generate_batch(
            prompt, num_samples=8, max_tokens=most, temperature=1.0, top_k=50, seed=part
        )
        tokens += sum(len(row) - len(prompt) for row in rows)
print(
    json.dumps({"tokens": tokens, "per_second": round(tokens / (time.perf_counter() - start), 1)})
)
