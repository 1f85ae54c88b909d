"""Our phase rl, algo=nanochat, on what the original sampled: `python our_step.py FOLDER`. Prints
how far the parameters are apart."""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nanochat import optim
from nanochat.commands.configs import register
from nanochat.datamodules.questions import Steps
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.sampling import Sampling
from nanochat.modules.rl import RLModule
from nanochat.rl.algorithms import build_algorithm
from nanochat.rl.collect import Collector, Experience, Row
from nanochat.runtime.paths import conf_dir

STEPS = 467
folder = Path(sys.argv[1])
start = json.loads((folder / "start.json").read_text())
told = json.loads((folder / "samples.json").read_text())
register()
with initialize_config_dir(str(conf_dir()), version_base="1.3"):
    config = OmegaConf.to_container(compose("train", ["+phase=rl", "algo=nanochat"]), resolve=False)
algorithm = build_algorithm(config["algo"])


class Fed(Collector):
    """Experience from the file instead of from the engine."""

    def __init__(self):
        self.algorithm = algorithm
        self.sampling = Sampling(top_k=50, max_tokens=24)
        self.rank = 0
        self.world_size = 1

    def collect(self, gpt, asked):
        number = asked // len(told[0])
        counts = [[sum(mask) for mask in group["masks"]] for group in told[number]]
        rows = []
        for group, weights in zip(told[number], algorithm.token_weights(counts, 24), strict=True):
            advantages = algorithm.advantages(group["rewards"])
            for ids, mask, advantage, weight in zip(
                group["rows"], group["masks"], advantages, weights, strict=True
            ):
                rows.append(Row(ids, mask, [0.0] * len(ids), advantage, weight, 0))
        return Experience([], rows, asked + len(told[number]))


class Keep(L.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        torch.save(
            {k: v.clone() for k, v in module.gpt.state_dict().items()},
            folder / f"ours_{trainer.global_step}.pt",
        )


gpt = GPT.build(GPTConfig(**start["sizes"]))
gpt.load_state_dict(torch.load(folder / "start.pt"), strict=False)
module = RLModule(
    gpt,
    lambda gpt: optim.build(gpt, config["optim"]["groups"], lr_factor=1.0, weight_decay=0.0),
    optim.build_schedule(config["optim"]["schedule"]),
    STEPS,
    collector=Fed(),
    micro_tokens=700,
)
trainer = L.Trainer(
    accelerator="cpu",
    max_steps=2,
    logger=False,
    callbacks=[Keep()],
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=tempfile.gettempdir(),
)
trainer.fit(module, torch.utils.data.DataLoader(Steps(0), batch_size=None))
before = torch.load(folder / "start.pt")
for step in (1, 2):
    theirs = torch.load(folder / f"original_{step}.pt")
    ours = torch.load(folder / f"ours_{step}.pt")
    shared = [k for k in ours if k in theirs and k not in ("cos", "sin")]
    gaps = {k: (ours[k] - theirs[k].float()).abs() for k in shared}
    total = sum(g.numel() for g in gaps.values())
    far = sum(int((g > 1e-5).sum()) for g in gaps.values())
    moved = max(float((theirs[k].float() - before[k]).abs().max()) for k in shared)
    worst = max(gaps, key=lambda k: float(gaps[k].max()))
    print(
        f"step {step}: {len(shared)} tensors moved by up to {moved:.1e}; {total - far:,} of "
        f"{total:,} numbers within 1e-5, "
        f"on average {sum(float(g.sum()) for g in gaps.values()) / total:.1e} apart, at most "
        f"{float(gaps[worst].max()):.1e} in {worst}"
    )
