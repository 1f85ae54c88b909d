"""Log-probabilities of sampled tokens under the distribution they were sampled from, and the loss
over them, in chunks.

As in `gpt/loss.py`, only the logits of one chunk of tokens exist at a time, and the gradients with
respect to hidden states and head are computed in the forward pass. Logits are computed only at
positions whose next token was sampled.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.gpt.loss import capped, chunk_rows
from nanochat.inference.sampling import Sampling

# logp (N,), indices of the tokens -> loss 0-d
Objective = Callable[[Tensor, slice], Tensor]


def check_sampling(sampling: Sampling) -> None:
    """ValueError for sampling settings whose distribution the loss cannot reproduce."""
    if sampling.temperature == 0:
        raise ValueError(
            "rollout.temperature=0 gives the same answer each time, so no group has a signal; try "
            "1.0"
        )
    if sampling.penalises:
        raise ValueError(
            "rollout.repetition_penalty is not supported in training: its distribution depends on "
            "the text before"
        )


def sampled_logprobs(x: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    """Log-probability (N,) of targets (N,) for logits x (N, V), under temperature, top_k, top_p and
    min_p.

    The set of allowed tokens is computed from these logits, and always contains the target, even if
    rounding or an update since sampling would exclude it. Gradients flow through the allowed
    tokens.
    """
    if sampling.temperature != 1:
        x = x / sampling.temperature
    own = x.gather(-1, targets[:, None])  # (N, 1)
    if sampling.top_k is None and sampling.top_p in (None, 1) and not sampling.min_p:
        return (own - x.logsumexp(-1, keepdim=True))[:, 0]
    if sampling.top_k is not None:
        kept, index = x.topk(min(sampling.top_k, x.size(-1)), dim=-1)  # (N, k)
    else:
        kept, index = x.sort(dim=-1, descending=True, stable=True)
    cut = torch.zeros_like(kept, dtype=torch.bool)
    if sampling.top_p is not None and sampling.top_p < 1:
        p = kept.detach().softmax(-1)
        cut |= p.cumsum(-1) - p >= sampling.top_p
    if sampling.min_p:
        cut |= kept.detach() < kept.detach().amax(-1, keepdim=True) + math.log(sampling.min_p)
    is_own = index == targets[:, None]
    kept = kept.masked_fill(cut & ~is_own, -torch.inf)
    total = kept.logsumexp(-1, keepdim=True)
    absent = ~is_own.any(-1, keepdim=True)
    total = torch.where(absent, torch.logaddexp(total, own), total)
    return (own - total)[:, 0]


class ChunkedObjective(torch.autograd.Function):
    """objective(log-probabilities) over tokens, from hidden states x (N, C), weight (Vp, C) and
    targets (N,).

    Also returns the log-probabilities and the entropies of the model's whole distribution, (N,)
    each, without gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, settings: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        sampling, softcap, vocab, objective = settings
        w = weight.to(x.dtype)[:vocab]
        grad_x = torch.empty_like(x)
        grad_w = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        found, entropies = [], []
        rows = chunk_rows(vocab, x.device)
        for start in range(0, x.size(0), rows):
            chunk = slice(start, min(start + rows, x.size(0)))
            z = (x[chunk] @ w.T).requires_grad_()
            with torch.enable_grad():
                logits = capped(z, softcap)
                logp = sampled_logprobs(logits, targets[chunk], sampling)
                part = objective(logp, chunk)
            (dz,) = torch.autograd.grad(part, z)
            dz = dz.to(x.dtype)
            loss += part.detach()
            found.append(logp.detach())
            entropies.append(_entropy(logits.detach()))
            torch.mm(dz, w, out=grad_x[chunk])
            grad_w[:vocab] += dz.T @ x[chunk]
        ctx.save_for_backward(grad_x, grad_w.to(weight.dtype))
        logps, entropy = torch.cat(found), torch.cat(entropies)
        ctx.mark_non_differentiable(logps, entropy)
        return loss, logps, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_w = ctx.saved_tensors
        return grad_x * grad, grad_w * grad, None, None


def _entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def hidden_of(gpt: GPT, idx: Tensor, chosen: Tensor) -> Tensor:
    """Hidden states (N, C) that predict the `chosen` tokens (N,) of idx (B, T), which are counted
    row by row. Numbers, since with a mask the host would wait for its count."""
    before = chosen - chosen // idx.size(1) - 1  # in rows of T - 1
    return gpt.hidden(idx[:, :-1]).flatten(0, 1)[before]


def policy_loss(
    gpt: GPT, idx: Tensor, chosen: Tensor, sampling: Sampling, objective: Objective
) -> tuple[Tensor, Tensor, Tensor]:
    """The objective over the sampled tokens of texts idx (B, T), `chosen` (N,) as `hidden_of` has
    it, with their log-probabilities and entropies.

    Texts are padded on the right with any tokens that are not chosen. Position 0 is bos, which is
    never sampled.
    """
    x, targets = hidden_of(gpt, idx, chosen), idx.flatten()[chosen]
    settings = (sampling, gpt.config.arch.softcap, gpt.config.vocab_size, objective)
    loss, logps, entropy = ChunkedObjective.apply(x, gpt.lm_head.weight, targets, settings)
    return loss, logps, entropy


@torch.no_grad()
def logprobs(gpt: GPT, idx: Tensor, chosen: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities (N,) of the sampled tokens, without gradients."""
    x, targets = hidden_of(gpt, idx, chosen), idx.flatten()[chosen]
    head, vocab = gpt.lm_head.product(x.dtype), gpt.config.vocab_size
    rows = chunk_rows(vocab, x.device)
    found = [
        sampled_logprobs(
            capped(head(x[i : i + rows])[:, :vocab], gpt.config.arch.softcap),
            targets[i : i + rows],
            sampling,
        )
        for i in range(0, x.size(0), rows)
    ]
    return torch.cat(found) if found else x.new_zeros(0)
