"""Does compiling the optimizer's step pay on this device? CPU time of Muon and AdamW, compiled and
not, in turn in one process: `python experiments/cpu_speed/optimizer.py [DEPTH] [VOCAB] [ROUNDS]`.

AdamW is not compiled in a run. Here its update is written out for torch.compile, with the rate as a
tensor, since it changes every step.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat import optim
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, from_depth
from nanochat.optim import adamw
from nanochat.runtime import hardware

given = [int(word) for word in sys.argv[1:]]
depth, vocab, rounds = [*given, *(4, 8192, 8)[len(given) :]]


def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: Tensor, t: Tensor) -> None:
    """As `adamw.step` without decay, of one tensor."""
    b1, b2, eps = 0.8, 0.95, 1e-10
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    p.sub_(lr / (1 - b1**t) * m / ((v / (1 - b2**t)).sqrt() + eps))


def muon(compile: bool) -> Callable[[], None]:
    groups = compose_choice("optim", "muon")["groups"]
    chosen = {"matrix": {**groups["matrix"], "compile": compile}}
    made = optim.build(gpt, {**groups, **chosen}, weight_decay=0.1)
    for group in made.param_groups:
        if group["role"] != "matrix":
            for p in group["params"]:
                p.requires_grad_(False)
                p.grad = None
    return lambda: made.step()


def adamw_of_tables(compile: bool) -> Callable[[], None]:
    params = [
        p.detach().clone() for name, p in gpt.named_parameters() if "transformer.h" not in name
    ]
    grads = [torch.randn_like(p) for p in params]
    group = vars(adamw.Options(lr=0.01))
    state = {p: adamw.new_state(p, group) for p in params}
    compiled, lr, t = torch.compile(update, dynamic=False), torch.tensor(0.01), torch.tensor(1.0)

    def plain() -> None:
        adamw.step(params, grads, state, group)

    @torch.no_grad()
    def written() -> None:
        t.add_(1)
        for p, g in zip(params, grads, strict=True):
            compiled(p, g, state[p]["exp_avg"], state[p]["exp_avg_sq"], lr, t)

    return written if compile else plain


dtype = hardware.compute_dtype("auto", torch.device("cpu"))[0]
gpt = GPT.build(from_depth(depth, vocab_size=vocab, sequence_len=512), compute_dtype=dtype)
torch._dynamo.config.cache_size_limit = 64
for name, make in (("AdamW of tables and head", adamw_of_tables), ("Muon", muon)):
    for p in gpt.parameters():
        p.grad = torch.randn_like(p)
    steps = {how: make(how) for how in (False, True)}
    took: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for how in (False, True) if number % 2 else (True, False):
            start = time.process_time()
            for _ in range(1 if number == 0 else 5):  # the first compiles
                steps[how]()
            took[how].append(time.process_time() - start)
    compiling, pairs = took[True].pop(0), list(zip(took[False][1:], took[True], strict=True))
    ratios = [a / b for a, b in pairs]
    ms = [1000 * statistics.median(x) / 5 for x in zip(*pairs, strict=True)]
    print(
        f"{name}, d{depth}, {dtype}: {ms[0]:.1f} ms of CPU time a step, compiled {ms[1]:.1f}: "
        f"{statistics.median(ratios):.3f} x as fast ({min(ratios):.2f}-{max(ratios):.2f}); "
        f"compiling took {compiling:.0f} s",
        flush=True,
    )
