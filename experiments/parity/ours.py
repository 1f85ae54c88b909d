"""Our part of `run.py`: `python ours.py ERA FOLDER`. Prints how far logits, losses and weights are from what theirs.py wrote."""

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nanochat import optim
from nanochat.gpt import GPT, GPTConfig, build_arch

CONF = Path(__file__).parents[2] / "conf"
era, folder = sys.argv[1], Path(sys.argv[2])
arch = build_arch(OmegaConf.to_container(OmegaConf.load(CONF / "arch" / f"{era}.yaml")))
theirs = torch.load(folder / f"{era}.pt")


def build(run):
    depth, heads, width = run["sizes"]
    gpt = GPT.build(GPTConfig(256, 512, depth, heads, heads, width, arch), seed=None)
    gpt.load_state_dict(run["weights"], strict=True)
    return gpt


print(f"{era}: largest difference to the original\n\n| what | difference | of size |\n|---|---|---|")
for depth, run in theirs["runs"].items():
    gpt = build(run)
    for name, grad in (("training", True), ("inference", False)):
        with torch.set_grad_enabled(grad):
            logits = gpt(run["idx"][0, :, :-1]).detach()
        gap, size = (logits - run["logits"]).abs().max(), run["logits"].abs().max()
        print(f"| fp32 logits, depth {depth}, {name} | {gap:.2e} | {size:.2f} |")
gpt, run = build(theirs["runs"][4]), theirs["runs"][4]
name = "muon_classic" if era == "classic" else "muon"
groups = OmegaConf.to_container(OmegaConf.load(CONF / "optim" / f"{name}.yaml"))["groups"]
if era == "modern":  # what the original's function has where its script gives nothing
    for role, rate in {"head": 0.004, "embedding": 0.2, "value_embedding": 0.1}.items():
        groups[role]["lr"] = rate
else:
    groups["matrix"]["ns_dtype"] = "bfloat16"  # as the original, whatever the hardware
optimizer = optim.build(gpt, groups, weight_decay=0.0)
losses = []
for step, batch in enumerate(run["idx"]):
    x, y = batch[:, :-1], batch[:, 1:]
    loss = gpt.loss_sum(x, y) / y.numel()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * (step + 1) / 40
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(float(loss))
gap = max(abs(a - b) for a, b in zip(losses, theirs["losses"], strict=True))
print(f"| losses of {len(losses)} steps | {gap:.2e} | {losses[0]:.2f} |")
after = gpt.state_dict()
for part in ("transformer.wte", "lm_head", "attn", "mlp", "value_embeds", "lambda", "smear_gate"):
    pairs = [
        (after[k].double(), v.double(), run["weights"][k].double()) for k, v in theirs["after"].items() if part in k
    ]
    if pairs:
        gap = max(float((a - b).abs().max()) for a, b, _ in pairs)
        moved = max(float((b - c).abs().max()) for _, b, c in pairs)
        print(f"| {part} after {len(losses)} steps, fp32 | {gap:.2e} | moved {moved:.2e} |")
print()
