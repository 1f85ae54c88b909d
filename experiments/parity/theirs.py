"""The original's part of `run.py`: `python theirs.py ERA FOLDER`, with its source first on the path. Writes weights, logits and steps."""

import sys
from pathlib import Path

import torch

from nanochat.gpt import GPT, GPTConfig

era, folder = sys.argv[1], Path(sys.argv[2])
V, T, STEPS, TOTAL = 512, 256, 8, 400
found = {}
for depth, width in ((4, 256), (12, 768)):
    heads = width // 128
    model = GPT(GPTConfig(sequence_len=T, vocab_size=V, n_layer=depth, n_head=heads, n_kv_head=heads, n_embd=width))
    torch.manual_seed(1)
    model.init_weights()
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.data = p.data.float()  # tables stay as they are
            if p.ndim == 2:  # none of them 0, as some begin
                p.copy_(torch.randn(p.shape, generator=drawn) / p.shape[1] ** 0.5)
    idx = torch.randint(0, V, (STEPS, 2, T + 1), generator=drawn)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        logits = model(idx[0, :, :-1])
    found[depth] = {"weights": weights, "idx": idx, "logits": logits, "sizes": (depth, heads, width)}

depth = 4
heads, width = 2, 256
model = GPT(GPTConfig(sequence_len=T, vocab_size=V, n_layer=depth, n_head=heads, n_kv_head=heads, n_embd=width))
model.init_weights()
model.load_state_dict(found[4]["weights"], strict=False)
for p in model.parameters():
    p.data = p.data.float()
model.load_state_dict(found[4]["weights"], strict=False)
made = model.setup_optimizers() if era == "classic" else model.setup_optimizer()
optimizers = made if isinstance(made, list) else [made]
rates = [[group["initial_lr"] for group in o.param_groups] for o in optimizers]
steps = []
for step in range(STEPS):
    x, y = found[4]["idx"][step, :, :-1], found[4]["idx"][step, :, 1:].contiguous()
    loss = model(x, y)
    loss.backward()
    for o in optimizers:
        for group in o.param_groups:
            group["lr"] = group["initial_lr"] * (step + 1) / 40
        o.step()
    model.zero_grad(set_to_none=True)
    steps.append(float(loss))
torch.save({"runs": found, "losses": steps, "after": model.state_dict(), "rates": rates}, folder / f"{era}.pt")
