"""Our rollouts on fresh weights: `python throughput_ours.py QUESTIONS MOST THREADS [ROWS]`; all
questions of a step at once."""

import json
import sys
import time

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling

questions, most, threads = map(int, sys.argv[1:4])
rows = int(sys.argv[4]) if len(sys.argv) > 4 else 256
torch.set_num_threads(threads)


class Specials:
    """As much of a tokenizer as the engine asks for; the end has the id it has in the other
    script."""

    def __init__(self):
        ids = {
            "python_start": -2,
            "python_end": -3,
            "output_start": -4,
            "output_end": -5,
            "assistant_end": 8000,
        }
        self.specials, self.bos_id = {f"<|{name}|>": i for name, i in ids.items()}, -1

    def piece(self, token):
        return b"a"


gpt = GPT.build(GPTConfig(2048, 8192, 4, 2, 2, 256))
engine = Engine(gpt, Specials(), max_rows=rows, prefill_tokens=None, pool_bytes=0)
drawn = torch.Generator().manual_seed(0)
prompts = [
    torch.randint(7000, (int(n),), generator=drawn).tolist()
    for n in torch.linspace(40, 160, questions)
]
sampling = Sampling(temperature=1.0, top_k=50, max_tokens=most, tools=False)
engine.sample([prompts[0][:40]], Sampling(top_k=50, max_tokens=8, tools=False), 8, ["warm"])
start = time.perf_counter()
found = engine.sample(prompts, sampling, 16, [str(i) for i in range(questions)])
tokens = sum(len(one.ids) for group in found for one in group)
print(
    json.dumps({"tokens": tokens, "per_second": round(tokens / (time.perf_counter() - start), 1)})
)
