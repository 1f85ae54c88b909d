"""How far engine and trainer are apart in the log-probability of what was sampled:
`python agreement.py CKPT [QUESTIONS]`, spelling, 8 answers each.

Beside both stands the trainer in double precision: if each is as far from it as from the other,
what is between them is rounding.
"""

import sys

import torch

from nanochat.checkpoint import folder
from nanochat.checkpoint.opened import open_checkpoint
from nanochat.gpt import GPT
from nanochat.inference.sampling import Sampling
from nanochat.rl.policy import logprobs
from nanochat.rl.rollout import engine_for, sample_rollouts
from nanochat.tasks.spelling import SimpleSpelling

opened = open_checkpoint(
    sys.argv[1], device="cpu", precision="fp32"
)  # others round what they multiply
gpt, tokenizer, questions = (
    opened.gpt,
    opened.tokenizer,
    int(sys.argv[2]) if len(sys.argv) > 2 else 256,
)
task = SimpleSpelling(path="library", start=20000, size=20000 + questions, held_out=0.1)
sampling = Sampling(temperature=1.0, top_k=50, max_tokens=60)
engine = engine_for(gpt, tokenizer, sampling, 256)
rollouts = sample_rollouts(
    engine,
    tokenizer,
    task,
    list(range(len(task))),
    samples=8,
    sampling=sampling,
    seeds=[str(n) for n in range(len(task))],
)
trained, double = (
    GPT.build(gpt.config, seed=None, compute_dtype=dtype).to(dtype)
    for dtype in (torch.float32, torch.float64)
)
for network in (trained, double):
    network.load_state_dict(folder.read_weights(opened.path), strict=True)
found: list[list[float]] = [[], [], []]
with torch.no_grad():
    for rollout in rollouts:
        ids, mask, told = rollout.tokens(train_stop=True)
        drawn = [logprob for logprob, sampled in zip(told, mask, strict=True) if sampled]
        idx = torch.tensor([ids])
        wanted = torch.tensor([t for t, kept in enumerate(mask) if kept])
        mine, true = (
            logprobs(network, idx, wanted, sampling).double().tolist()
            for network in (trained, double)
        )
        assert len(drawn) == len(mine) == sum(mask)
        for column, values in zip(found, (drawn, mine, true), strict=True):
            column += values
engine_of, trainer, exact = (torch.tensor(column, dtype=torch.float64) for column in found)
for name, gap in (
    ("engine, trainer", engine_of - trainer),
    ("engine, double", engine_of - exact),
    ("trainer, double", trainer - exact),
):
    gap = gap.abs()
    print(
        f"{name}: mean {gap.mean():.1e}, most {gap.max():.1e}, "
        f"above 1e-5 {int((gap > 1e-5).sum())} of {len(gap):,}, "
        "above 1e-5 and 1e-5 of its own size together "
        f"{int((gap > 1e-5 * (1 + exact.abs())).sum())}"
    )
