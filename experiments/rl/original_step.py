"""The original's engine, masks and update on that model: `python original_step.py FOLDER`, with its
source on PYTHONPATH.

Follows its script for RL (facts sheet 5.9): 4 questions, 16 answers each, 8 at a time, rewards by a
fixed rule, two steps of a run of 467. Writes what it sampled (samples.json) and the parameters
after each step.
"""

import json
import sys
from pathlib import Path

import torch
from nanochat.engine import Engine

from nanochat.gpt import GPT, GPTConfig

QUESTIONS, SAMPLES, PASS, MOST, STEPS, FRACTION = 4, 16, 8, 24, 467, 0.05
folder = Path(sys.argv[1])
start = json.loads((folder / "start.json").read_text())


class Bytes:
    """As much of a tokenizer as the engine asks for."""

    def encode_special(self, name):
        return start["specials"][name]

    def get_bos_token_id(self):
        return start["specials"]["<|bos|>"]

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


with torch.device("meta"):
    model = GPT(GPTConfig(**start["sizes"]))
model.to_empty(device="cpu")
model.init_weights()
model.load_state_dict(
    {k: v for k, v in torch.load(folder / "start.pt").items() if k not in ("cos", "sin")},
    strict=False,
)
model = model.float()
engine = Engine(model, Bytes())
optimizer = model.setup_optimizer(
    unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, weight_decay=0.0
)
for group in optimizer.param_groups:
    group["lr"] = group["initial_lr"] = group["lr"] * FRACTION
told = []
for step in range(2):
    groups = []
    for question in range(QUESTIONS):
        prompt = [start["specials"]["<|bos|>"], *f"question {step} {question}".encode()]
        rows, masks = [], []
        model.eval()
        for part in range(SAMPLES // PASS):
            ids, mask = engine.generate_batch(
                prompt,
                num_samples=PASS,
                max_tokens=MOST,
                temperature=1.0,
                top_k=50,
                seed=hash((step, question, part)) & 0x7FFFFFFF,
            )
            rows, masks = rows + ids, masks + mask
        rewards = [float(sum(row) % 3 == 0) for row in rows]
        groups.append({"prompt": len(prompt), "rows": rows, "masks": masks, "rewards": rewards})
        model.train()
        longest, end = max(map(len, rows)), start["specials"]["<|assistant_end|>"]
        ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
        mask = torch.tensor([m + [0] * (longest - len(m)) for m in masks])
        reward = torch.tensor(rewards)
        advantage = reward - reward.mean()
        for part in range(SAMPLES // PASS):
            at = slice(part * PASS, (part + 1) * PASS)
            targets = ids[at, 1:].clone()
            targets[mask[at, 1:] == 0] = -1
            logp = -model(ids[at, :-1], targets, loss_reduction="none").view_as(targets)
            valid = (targets >= 0).sum().clamp(min=1)
            objective = (logp * advantage[at].unsqueeze(-1)).sum() / (
                valid * (SAMPLES // PASS) * QUESTIONS
            )
            (-objective).backward()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (1 - step / STEPS)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    told.append(groups)
    torch.save(
        {k: v.detach().clone() for k, v in model.state_dict().items()},
        folder / f"original_{step + 1}.pt",
    )
(folder / "samples.json").write_text(json.dumps(told))
