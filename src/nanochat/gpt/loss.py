"""Next-token loss without the full logits: head, softcap and cross-entropy a chunk of tokens at a
time.

The logits of a batch (B * T, V) are the largest tensor of a small model's training. Here a chunk of
them exists at a time: in training the gradients with respect to hidden states and head are made in
the forward pass, while the chunk is there, and the backward pass only scales them. Three matrix
products a chunk, none of them twice.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# measured: experiments/cpu_speed/README.md; logits of one chunk stay near the last-level cache on a
# CPU (2**22 fp32 = 16 MiB)
CHUNK_VALUES_CPU = 2**22
# guess: 512 MiB of fp32 at most, large enough that the matrix products fill the card
CHUNK_VALUES_GPU = 2**27


def chunk_rows(vocab: int, device: torch.device) -> int:
    """Tokens per chunk, a power of two between 64 and 8192."""
    budget = CHUNK_VALUES_CPU if device.type in ("cpu", "meta") else CHUNK_VALUES_GPU
    return max(64, min(8192, 2 ** ((budget // vocab).bit_length() - 1)))


def capped(z: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(z / softcap) in fp32; without a cap z itself."""
    if softcap is None:
        return z.float()
    if not torch.is_grad_enabled():
        return (z.float() / softcap).tanh_().mul_(softcap)  # the same bits, in place
    return softcap * torch.tanh(z.float() / softcap)


def capped_losses(z: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Loss in nats of each token, 0 where the target is -1. z (N, V) raw logits, targets (N,) ->
    (N,) fp32."""
    return F.cross_entropy(capped(z, softcap), targets, ignore_index=-1, reduction="none")


def capped_loss_and_grad(
    z: Tensor, targets: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Summed loss, and its gradient with respect to the raw logits in their dtype. z (N, V),
    targets (N,)."""
    if softcap is None:
        keep = (targets >= 0).unsqueeze(1)
        index = targets.clamp_min(0).unsqueeze(1)
        logp = z.float().log_softmax(1)
        grad = logp.exp().scatter_add(1, index, -torch.ones_like(logp[:, :1])) * keep
        return -(logp.gather(1, index) * keep).sum(), grad.to(z.dtype)
    t = torch.tanh(z.float() / softcap)
    # the cap itself bounds the exponent, so no row maximum has to be found first: exp(s - softcap)
    # is in [exp(-2 softcap), 1]
    e = torch.exp(softcap * t - softcap)
    total = e.sum(1, keepdim=True)
    keep = targets >= 0
    index = torch.where(keep, targets, 0).unsqueeze(1)
    loss = (torch.log(total) + softcap - softcap * t.gather(1, index)).squeeze(1)
    hit = torch.arange(z.size(1), device=z.device).unsqueeze(0) == index
    grad = (e / total - hit.to(e.dtype)) * (1 - t * t) * keep.unsqueeze(1)
    return (loss * keep).sum(), grad.to(z.dtype)


class ChunkedHeadLoss(torch.autograd.Function):
    """Sum of losses over tokens whose target is not -1; x (N, C), weight (Vp, C), targets (N,),
    logits cut to `vocab`."""

    @staticmethod
    def forward(ctx, x, weight, targets, softcap: float | None, vocab: int, rows: int, step):
        w = weight.to(x.dtype)[:vocab]
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for start in range(0, x.size(0), rows):
            part = x[start : start + rows]
            chunk_loss, dz = step(part @ w.T, targets[start : start + rows], softcap)  # (rows, V)
            loss += chunk_loss
            torch.mm(dz, w, out=grad_x[start : start + rows])
            if x.dtype == torch.float32:
                grad_w[:vocab].addmm_(dz.T, part)
            else:
                grad_w[:vocab] += dz.T @ part
        ctx.save_for_backward(grad_x, grad_w.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx, grad):
        grad_x, grad_w = ctx.saved_tensors
        return grad_x.mul_(grad), grad_w.mul_(grad), None, None, None, None, None


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    softcap: float | None,
    vocab: int,
    step=capped_loss_and_grad,
) -> Tensor:
    """Summed next-token loss in nats. x (B, T, C) after the last norm, weight (Vp, C), targets (B,
    T) with -1 ignored.

    `step` is `capped_loss_and_grad` or a compiled version of it.
    """
    flat = x.flatten(0, 1)
    rows = chunk_rows(vocab, x.device)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return ChunkedHeadLoss.apply(flat, weight, targets.flatten(), softcap, vocab, rows, step)
    w = weight.to(x.dtype)[:vocab]
    return head_losses(x, lambda part: part @ w.T, targets, softcap=softcap, vocab=vocab).sum()


def head_losses(
    x: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    softcap: float | None,
    vocab: int,
) -> Tensor:
    """Loss in nats of every token, (B, T) fp32, 0 where the target is -1; without gradients, a
    chunk at a time.

    x (B, T, C) after the last norm; `head` makes raw logits (N, at least `vocab`) of (N, C).
    """
    flat, flat_targets, rows = x.flatten(0, 1), targets.flatten(), chunk_rows(vocab, x.device)
    losses = [
        capped_losses(head(flat[i : i + rows])[:, :vocab], flat_targets[i : i + rows], softcap)
        for i in range(0, flat.size(0), rows)
    ]
    return torch.cat(losses).view(targets.shape)
