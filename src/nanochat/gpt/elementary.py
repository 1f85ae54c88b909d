"""What the network is made of below its layers: RMSNorm and rotary positions (facts sheet 1.3)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

# from: facts sheet 1.3, what torch's rms_norm adds where no eps is given, in bf16 too
NORM_EPS = torch.finfo(torch.float32).eps


def norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """`scale` * x / rms(x) over the last axis; x (…, C) -> (…, C).

    RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) without a gain: the matrix that reads the
    result can scale its own columns, so a gain would only be a second name for them.
    """
    plain = x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if plain and not torch.compiler.is_compiling():
        # the same by half as many kernels
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (…, 1)
        eps, mean = _constant(NORM_EPS / scale**2), 1 / (x.size(-1) * scale**2)
        return x * torch.addcmul(eps, length, length, value=mean).rsqrt_()
    x = F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)
    return x if scale == 1 else x * scale


@functools.cache
def _constant(value: float) -> Tensor:
    with torch.inference_mode(False):  # it is used with and without gradients
        return torch.tensor(value)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE (Su et al. 2021, arXiv:2104.09864): turn channel pairs by an angle that grows with
    position.

    q · k then depends on how far apart two tokens are, not on where they stand. A pair is channel j
    and channel j + D/2, and the turn is by *minus* the angle: nanochat's convention, which stock
    kernels do not have. x (B, T, heads, D), cos and sin (1, T, 1, D/2) -> (B, T, heads, D).
    """
    x1, x2 = x.chunk(2, dim=-1)  # (B, T, heads, D/2) each
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1).to(x.dtype)


def rope_table(
    length: int, D: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of every position and channel pair, (1, length, 1, D/2); computed in fp32."""
    # a quotient: base ** (-c) differs in the last bit for 20 of 64 c, which far positions multiply
    c = torch.arange(0, D, 2, dtype=torch.float32, device=device) / D  # (D/2,)
    frequency = 1.0 / base**c
    position = torch.arange(length, dtype=torch.float32, device=device)
    angle = torch.outer(position, frequency)[None, :, None]  # (1, length, 1, D/2)
    return angle.cos().to(dtype), angle.sin().to(dtype)
