"""Muon: momentum, then the nearest orthogonal matrix (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

Two variants as in nanochat (facts sheet 2.1 and 2.2). `classic`: Newton-Schulz. `modern`: rows equilibrated (MuonEq), Polar Express
(Amsel et al. 2025, arXiv:2505.16932), renormalised (Muon+), a factored second moment (NorMuon, Li et al. 2025, arXiv:2510.05491),
cautious weight decay (Liang et al. 2024, arXiv:2411.16085). Matrices of one shape are updated together as a batch; the
state is kept per matrix, so that it does not depend on which matrices a process holds.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

DEFAULTS: dict[str, Any] = {
    "lr": None, "momentum": 0.95, "beta2": 0.9, "weight_decay": 0.0, "ns_steps": 5, "variant": "modern", "ns_dtype": "auto",
}  # fmt: skip
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # from: facts sheet 2.1
POLAR_EXPRESS = (  # from: facts sheet 2.2, for five steps with a cushion of 1.01
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def check(options: dict[str, Any]) -> None:
    if options["variant"] not in ("modern", "classic"):
        raise ValueError(f"variant={options['variant']!r} of muon is not known; choose from modern, classic")
    if options["variant"] == "modern" and not 1 <= options["ns_steps"] <= len(POLAR_EXPRESS):
        raise ValueError(f"ns_steps={options['ns_steps']} must be 1 to {len(POLAR_EXPRESS)} for the modern variant")
    if options["variant"] == "classic" and options["weight_decay"]:
        raise ValueError(f"weight_decay={options['weight_decay']} has no effect in muon's classic variant; set it to 0")
    for name in ("lr", "weight_decay"):
        if options[name] < 0:
            raise ValueError(f"{name}={options[name]} of muon must not be negative")
    for name in ("momentum", "beta2"):
        if not 0 <= options[name] < 1:
            raise ValueError(f"{name}={options[name]} of muon must lie between 0 and below 1")
    if options["ns_dtype"] not in ("auto", "bfloat16", "float32"):
        raise ValueError(f"ns_dtype={options['ns_dtype']!r} is not known; choose from auto, bfloat16, float32")


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
    row = g.norm(dim=-1, keepdim=True).clamp_min(1e-6)  # (K, m, 1)
    x = g * (g.norm(dim=(-2, -1), keepdim=True) / m**0.5 / row)
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    if m > n:
        x = x.mT
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = x @ x.mT  # (K, k, k) with k = min(m, n)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if m > n else x


def normalize(x: Tensor, second: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """Muon+ and NorMuon on (K, m, n): unit mean square, then each row or column by its running size. Returns (update, new second)."""
    m, n = x.shape[-2:]
    x = x * (min(m, n) ** 0.5 / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6))
    mean = x.square().mean(dim=-1 if m >= n else -2, keepdim=True)  # (K, m, 1) or (K, 1, n)
    second = torch.lerp(second, mean, 1 - beta2)
    y = x * second.clamp_min(1e-10).rsqrt()
    return y * (x.norm(dim=(-2, -1), keepdim=True) / y.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10)), second


def modern_update(g: Tensor, second: Tensor, beta2: float, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return normalize(orthogonalize_modern(g.to(dtype), steps).float(), second, beta2)


def _ns_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


@torch.no_grad()
def step(params: list[Tensor], grads: list[Tensor], state: dict[Tensor, dict[str, Any]], group: dict[str, Any]) -> None:
    """One update in place. State per matrix: momentum_buffer (m, n), and second_momentum_buffer (m, 1) or (1, n) when modern."""
    modern, mu, lr = group["variant"] == "modern", group["momentum"], group["lr"]
    for p in params:
        if not state[p]:
            m, n = p.shape
            state[p]["momentum_buffer"] = torch.zeros_like(p)
            if modern:
                state[p]["second_momentum_buffer"] = p.new_zeros((m, 1) if m >= n else (1, n))
    momenta = [state[p]["momentum_buffer"] for p in params]
    torch._foreach_lerp_(momenta, grads, 1 - mu)
    nesterov = torch._foreach_lerp(grads, momenta, mu)
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(params):
        shapes[tuple(p.shape)].append(i)
    for (m, n), members in sorted(shapes.items()):
        g = torch.stack([nesterov[i] for i in members])  # (K, m, n)
        dtype = _ns_dtype(group["ns_dtype"], g.device)
        mine = [params[i] for i in members]
        if modern:
            second = torch.stack([state[p]["second_momentum_buffer"] for p in mine])
            update, second = modern_update(g, second, group["beta2"], group["ns_steps"], dtype)
            for p, s in zip(mine, second.unbind(), strict=True):
                state[p]["second_momentum_buffer"].copy_(s)
        else:
            update = orthogonalize_classic(g.to(dtype), group["ns_steps"]).float()
        eta = lr * max(1.0, m / n) ** 0.5
        for p, y in zip(mine, update.unbind(), strict=True):
            if modern and group["weight_decay"]:
                p.sub_(p * (y * p >= 0), alpha=eta * group["weight_decay"])  # cautious: only where the update agrees
            p.sub_(y, alpha=eta)
