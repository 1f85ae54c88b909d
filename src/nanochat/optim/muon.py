"""Muon: momentum, then the nearest orthogonal matrix (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon).

Two variants as in nanochat (facts sheet 2.1 and 2.2). `classic`: Newton-Schulz. `modern`: rows
equilibrated (MuonEq), Polar Express (Amsel et al. 2025, arXiv:2505.16932), renormalised (Muon+), a
factored second moment (NorMuon, Li et al. 2025, arXiv:2510.05491), cautious weight decay (Liang et
al. 2024, arXiv:2411.16085). Matrices of one shape are updated together as a batch; the state is
kept per matrix, so that it does not depend on which matrices a process holds.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from nanochat.runtime.hardware import multiplies_bf16
from nanochat.runtime.settings import Beta, Decay, Rate

log = logging.getLogger(__name__)

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # from: facts sheet 2.1
POLAR_EXPRESS = (  # from: facts sheet 2.2, for five steps with a cushion of 1.01
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True)
class Options:
    """Of a group. `ns_dtype`: dtype of the orthogonalisation; auto follows the facts sheet where
    the hardware multiplies bf16.

    `compile`: auto is on CUDA only; on a CPU it costs 20 s and gains nothing (measured, d4 shapes:
    experiments/cpu_speed/README.md).
    """

    lr: Rate
    momentum: Beta = 0.95
    beta2: Beta = 0.9
    weight_decay: Decay = 0.0
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5  # guess: 20 are far more than converges
    variant: Literal["modern", "classic"] = "modern"
    ns_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.variant == "modern" and self.ns_steps > len(POLAR_EXPRESS):
            raise ValueError(
                f"ns_steps={self.ns_steps} must be 1 to {len(POLAR_EXPRESS)} for muon's modern "
                "variant"
            )
        if self.variant == "classic" and self.weight_decay:
            raise ValueError(
                f"weight_decay={self.weight_decay} has no effect in muon's classic variant; set it "
                "to 0"
            )


SCHEDULED = ("lr", "momentum", "weight_decay")
NDIM = 2  # matrices only


def orthogonalize_classic(g: Tensor, steps: int) -> Tensor:
    """Newton-Schulz on a batch (K, m, n); singular values end near 1."""
    a, b, c = NEWTON_SCHULZ
    x = g.mT if g.size(-2) > g.size(-1) else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if g.size(-2) > g.size(-1) else x


def orthogonalize_modern(g: Tensor, steps: int) -> Tensor:
    """Row equilibration and Polar Express on a batch (K, m, n)."""
    m, n = g.shape[-2:]
    wide = g.float()  # as nanochat: only the factor is rounded to bf16
    row = wide.norm(dim=-1, keepdim=True).clamp_min(1e-6)  # (K, m, 1)
    x = g * (wide.norm(dim=(-2, -1), keepdim=True) / m**0.5 / row).to(g.dtype)
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    if m > n:
        x = x.mT
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT  # (K, k, k) with k = min(m, n)
        # a x + (b A + c A A) x, the sums inside the products: 1.2 x as fast on a CPU, what
        # compiling gained
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if m > n else x


def normalize(x: Tensor, second: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """Muon+ and NorMuon on (K, m, n): unit mean square, then each row or column by its running
    size. Returns (update, new second)."""
    m, n = x.shape[-2:]
    x = x * (min(m, n) ** 0.5 / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6))
    mean = x.square().mean(dim=-1 if m >= n else -2, keepdim=True)  # (K, m, 1) or (K, 1, n)
    second = torch.lerp(second, mean, 1 - beta2)
    y = x * second.clamp_min(1e-10).rsqrt()
    return y * (
        x.norm(dim=(-2, -1), keepdim=True) / y.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10)
    ), second


def modern_update(
    g: Tensor, second: Tensor, beta2: float, steps: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return normalize(orthogonalize_modern(g.to(dtype), steps).float(), second, beta2)


def classic_update(g: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    return orthogonalize_classic(g.to(dtype), steps).float()


# update -> its compiled form, or itself where compiling failed
_compiled: dict[Callable, Callable] = {}


def run(update: Callable, compile: bool, *args: Any) -> Any:
    """`update(*args)`, if wanted compiled for static shapes. Where that fails one line says so and
    it stays uncompiled."""
    if not compile:
        return update(*args)
    if update not in _compiled:
        _compiled[update] = torch.compile(update, dynamic=False)
    try:
        return _compiled[update](*args)
    except Exception as error:
        # whatever a compiler raises; an error of the update itself comes again below
        if _compiled[update] is not update:
            what = " ".join(str(error).split())[:200]
            log.warning(
                "optimizer: %s runs uncompiled, compiling failed: %s: %s",
                update.__name__,
                type(error).__name__,
                what,
            )
        _compiled[update] = update
        return update(*args)


def wants_compile(group: dict[str, Any], device: torch.device) -> bool:
    return device.type == "cuda" if group["compile"] == "auto" else bool(group["compile"])


def ns_dtype(group: dict[str, Any], device: torch.device) -> torch.dtype:
    """Dtype of the orthogonalisation (facts sheet 2.2, step 2, and 2.1): bf16 if the compute dtype
    is, for `classic` always.

    An exception is hardware without bf16 arithmetic, where bf16 would be slower and coarser: fp32.
    """
    if group["ns_dtype"] != "auto":
        return torch.bfloat16 if group["ns_dtype"] == "bfloat16" else torch.float32
    wanted = group["variant"] == "classic" or group["compute_dtype"] == torch.bfloat16
    return torch.bfloat16 if wanted and multiplies_bf16(device)[0] else torch.float32


def new_state(p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """momentum_buffer (m, n); modern also has second_momentum_buffer (m, 1), or (1, n) for a wide
    matrix."""
    m, n = p.shape
    fresh = {"momentum_buffer": torch.zeros_like(p)}
    if group["variant"] == "modern":
        fresh["second_momentum_buffer"] = p.new_zeros((m, 1) if m >= n else (1, n))
    return fresh


@torch.no_grad()
def step(
    params: list[Tensor],
    grads: list[Tensor],
    state: dict[Tensor, dict[str, Any]],
    group: dict[str, Any],
) -> None:
    """One update in place."""
    modern, mu, lr = group["variant"] == "modern", group["momentum"], group["lr"]
    momenta = [state[p]["momentum_buffer"] for p in params]
    torch._foreach_lerp_(momenta, grads, 1 - mu)
    nesterov = torch._foreach_lerp(grads, momenta, mu)
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(params):
        shapes[tuple(p.shape)].append(i)
    device, steps = params[0].device, group["ns_steps"]
    dtype = ns_dtype(group, device)
    compile = wants_compile(group, device)
    for (m, n), members in sorted(shapes.items()):
        g = torch.stack([nesterov[i] for i in members])  # (K, m, n)
        mine = [params[i] for i in members]
        if modern:
            second = torch.stack([state[p]["second_momentum_buffer"] for p in mine])
            update, second = run(modern_update, compile, g, second, group["beta2"], steps, dtype)
            for p, s in zip(mine, second.unbind(), strict=True):
                state[p]["second_momentum_buffer"].copy_(s)
        else:
            update = run(classic_update, compile, g, steps, dtype)
        eta = lr * max(1.0, m / n) ** 0.5
        for p, y in zip(mine, update.unbind(), strict=True):
            if modern and group["weight_decay"]:
                # cautious: only where the update agrees
                p.sub_(p * (y * p >= 0), alpha=eta * group["weight_decay"])
            p.sub_(y, alpha=eta)
