"""Matrix products of training in eight bits, twice as fast on cards that have them (facts sheet
2.6).

Both factors are scaled by one number each, so that their largest value is the largest of the
format, and rounded; the product is added up in fp32 and scaled back (Micikevicius et al. 2022, "FP8
formats for deep learning", arXiv:2209.05433). What is multiplied in the forward pass has the format
with more digits, gradients the one with more range. Weights stay fp32, and without gradients
(validation, samples) the products are those of the compute dtype.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2  # largest: 448 and 57,344
MULTIPLE, SMALLEST = 16, 128  # from: facts sheet 2.6, of a matrix's sides
# from: facts sheet 10.4, at d12 (width 768) slower than bf16, at d26 (1,664) 17 % faster
TOO_NARROW = 768


class Rounded(NamedTuple):
    """`values` (M, K) in eight bits times `scale`, 0-d, is about the matrix that it was made of."""

    values: Tensor
    scale: Tensor

    def turned(self) -> "Rounded":
        """Of the transposed matrix, its rows in order."""
        return Rounded(self.values.t().contiguous(), self.scale)


def to_eight_bits(x: Tensor, dtype: torch.dtype) -> Rounded:
    """x (M, K) with one scale for all of it."""
    largest = torch.finfo(dtype).max
    # the quotient in fp64, so that compiled and uncompiled code have the same bits
    factor = (largest / x.abs().amax().double().clamp_min(1e-12)).float()
    return Rounded((x.float() * factor).clamp(-largest, largest).to(dtype), factor.reciprocal())


def product(a: Rounded, b: Rounded, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """a (M, K) times b (N, K) transposed -> (M, N) in `dtype`. `fast`: added up with fewer bits."""
    return torch._scaled_mm(
        a.values, b.values.t(), a.scale, b.scale, out_dtype=dtype, use_fast_accum=fast
    )


class _Product(torch.autograd.Function):
    """x (N, C), weight (M, C) -> (N, M) in the dtype of x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        x8, w8 = to_eight_bits(x, VALUES), to_eight_bits(weight, VALUES)
        ctx.save_for_backward(*x8, *w8)
        return product(x8, w8, x.dtype, fast=True)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x8, w8 = Rounded(*ctx.saved_tensors[:2]), Rounded(*ctx.saved_tensors[2:])
        g8 = to_eight_bits(grad, GRADIENTS)
        to_x = product(g8, w8.turned(), grad.dtype)  # (N, M) times (M, C)
        return to_x, product(g8.turned(), x8.turned(), grad.dtype)  # (M, N) times (N, C)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, C) times weight (M, C) transposed -> (…, M) in the dtype of x; the weight is cast."""
    if not torch.is_grad_enabled() or x.numel() // x.size(-1) % MULTIPLE:
        return F.linear(x, weight.to(x.dtype))
    return _Product.apply(x.flatten(0, -2), weight).unflatten(0, x.shape[:-1])


def takes(weight: Tensor) -> bool:
    """Whether products with this weight are done in eight bits."""
    return all(n % MULTIPLE == 0 and n >= SMALLEST for n in weight.shape)


def problem(width: int, device: torch.device, compiled: bool) -> str | None:
    """Why a run of this width is not to be had with it, or is known to be slower; None if it is."""
    if width <= TOO_NARROW:
        return f"it is slower up to a width of {TOO_NARROW} (d12), and this model has {width}"
    if not compiled:
        return "uncompiled it is slower than bf16; drop compute.compile=false"
    if device.type != "cuda":
        return f"{device.type} multiplies no fp8"
    # a dry run may be for another machine
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 9):
        return "it needs compute capability 8.9"
    return None
