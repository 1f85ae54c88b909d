"""AdamW on a list of tensors (Loshchilov & Hutter 2019, arXiv:1711.05101), as nanochat's modern
generation does it (facts sheet 2.2).

p <- p (1 - lr wd);  m <- m + (1 - b1)(g - m);  v <- v + (1 - b2)(g^2 - v);  p <- p - lr / (1 -
b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.optim.muon import run, wants_compile
from nanochat.runtime.settings import Beta, Decay, Epsilon, Rate

SMALL = 2**16  # guess: below so many values one pass over memory saves less than a call costs


@dataclass(frozen=True)
class Options:
    """Of a group: the decay rates of the two running means, and the weight decay.

    `compile`: one pass over memory for large tensors. auto is on CUDA, and on a CPU where the
    network is compiled too (measured, 3 x as fast at d4: experiments/cpu_speed/README.md).
    """

    lr: Rate
    betas: tuple[Beta, Beta] = (0.8, 0.95)
    eps: Epsilon = 1e-10
    weight_decay: Decay = 0.0
    compile: bool | Literal["auto"] = "auto"


SCHEDULED = ("lr",)
BY_ROWS = True


def new_state(p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """Moments in the tensor's dtype."""
    return {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def one_pass(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    a1: Tensor,
    a2: Tensor,
    keep: Tensor,
    size: Tensor,
    bias2: Tensor,
    eps: Tensor,
) -> None:
    """The update of one tensor in place, written for torch.compile; a1 = 1 - b1, a2 = 1 - b2."""
    m.add_((g - m) * a1)
    v.add_((g * g - v) * a2)
    p.mul_(keep).sub_(size * m / ((v / bias2).sqrt() + eps))


def _compiles(group: dict[str, Any], device: torch.device) -> bool:
    wanted = group.get("compile", "auto")  # checkpoints of an earlier version do not have it
    return bool(wanted == "auto" and group.get("compiled")) or wants_compile(
        {"compile": wanted}, device
    )


@torch.no_grad()
def step(
    params: list[Tensor],
    grads: list[Tensor],
    state: dict[Tensor, dict[str, Any]],
    group: dict[str, Any],
) -> None:
    """One update in place."""
    (b1, b2), lr = group["betas"], group["lr"]
    for p in params:
        state[p]["step"] += 1
    t = state[params[0]]["step"]
    if _compiles(group, params[0].device):
        large = {i for i, p in enumerate(params) if p.numel() >= SMALL}
        # 0-d tensors: a number that changes every step would be compiled every step
        numbers = (1 - b1, 1 - b2, 1 - lr * group["weight_decay"], lr / (1 - b1**t), 1 - b2**t)
        given = [torch.tensor(x, dtype=torch.float32) for x in (*numbers, group["eps"])]
        for i in large:
            kept = state[params[i]]
            run(one_pass, True, params[i], grads[i], kept["exp_avg"], kept["exp_avg_sq"], *given)
        params = [p for i, p in enumerate(params) if i not in large]
        grads = [g for i, g in enumerate(grads) if i not in large]
        if not params:
            return
    m, v = [state[p]["exp_avg"] for p in params], [state[p]["exp_avg_sq"] for p in params]
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    torch._foreach_lerp_(m, grads, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, grads, grads, 1 - b2)
    denominator = torch._foreach_div(v, 1 - b2**t)
    torch._foreach_sqrt_(denominator)
    torch._foreach_add_(denominator, group["eps"])
    torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - b1**t))
