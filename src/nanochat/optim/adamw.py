"""AdamW on a list of tensors (Loshchilov & Hutter 2019, arXiv:1711.05101), as nanochat's modern
generation does it (facts sheet 2.2).

p <- p (1 - lr wd);  m <- m + (1 - b1)(g - m);  v <- v + (1 - b2)(g^2 - v);  p <- p - lr / (1 -
b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.runtime.settings import Beta, Decay, Epsilon, Rate


@dataclass(frozen=True)
class Options:
    """Of a group: the decay rates of the two running means, and the weight decay."""

    lr: Rate
    betas: tuple[Beta, Beta] = (0.8, 0.95)
    eps: Epsilon = 1e-10
    weight_decay: Decay = 0.0


SCHEDULED = ("lr",)
BY_ROWS = True


def new_state(p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """Moments in the tensor's dtype."""
    return {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


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
