"""Attention of one query per row and head, as in a decoding step. PyTorch's kernel is made for many
queries and reads keys and values at half the speed."""

import math

import torch.nn.functional as F
from torch import Tensor

# measured: bytes of keys from which on products of matrices are faster (CPU, fp32)
PRODUCTS_PAY = 2**22


def one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q (B, H, 1, D) over k and v (B, G, S, D) -> (B, H, 1, D); `mask` (B, 1, 1, S) is added.

    On a CPU by products of matrices once there is much to read.
    """
    B, H, _, D = q.shape
    G = k.size(1)
    if not q.is_cpu or B * G * k.size(2) * D * k.itemsize < PRODUCTS_PAY:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=H != G)
    q = (q / math.sqrt(D)).view(B, G, H // G, D)
    scores = (k @ q.mT).mT  # (B, G, H / G, S); faster than q @ k.mT
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ v).view(B, H, 1, D)


def one_query_in_loops(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """q (R, H, D) over the `visible` (R, S) of k and v (R, G, S, D) -> (R, H, D), to be compiled.

    Inductor makes two loops of it that read keys and values once (measured on two cores, d12 and
    512 slots: a step of 28 ms became one of 22).
    """
    R, H, D = q.shape
    G = k.size(1)
    q = q.view(R, G, H // G, 1, D)
    scores = (q * k[:, :, None]).sum(-1) / math.sqrt(D)  # (R, G, H / G, S)
    weights = scores.masked_fill(~visible[:, None, None], -math.inf).softmax(-1)
    return (weights[..., None] * v[:, :, None]).sum(3).view(R, H, D)
