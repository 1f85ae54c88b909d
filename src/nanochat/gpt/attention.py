"""Causal attention with a left window, by whichever back-end this machine can run.

Every back-end has the signature `attend(q, k, v, window)` with q (B, T, H, D), k and v (B, S, G,
D), S >= T, the queries being the last T of the S positions, and returns (B, T, H, D). A query at
position t sees t and the `window` positions before it (so window + 1 keys), or all of them if
`window` is None: the left window of FlashAttention.

`choose` goes by capability, then proves its choice with one forward and one backward pass against
`reference`: a kernel that imports but cannot run is found before training, not in it.
"""

import importlib.util
import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]


def sees(T: int, S: int, window: int | None, device: torch.device | None = None) -> Tensor:
    """Boolean (T, S): may query i (at position S - T + i) look at key j?"""
    q = torch.arange(S - T, S, device=device).unsqueeze(1)
    k = torch.arange(S, device=device).unsqueeze(0)
    mask = k <= q
    return mask if window is None else mask & (q - k <= window)


def reference(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The definition: a masked softmax in float64, every score written out. On the CPU for Metal,
    which has no float64."""
    H, G, D = q.size(2), k.size(2), q.size(3)
    near = (x.cpu() if x.device.type == "mps" else x for x in (q, k, v))
    q64, k64, v64 = (x.double().transpose(1, 2) for x in near)  # (B, heads, length, D)
    # each key head serves H // G queries
    k64, v64 = (k64.repeat_interleave(H // G, 1), v64.repeat_interleave(H // G, 1))
    scores = q64 @ k64.mT / math.sqrt(D)  # (B, H, T, S)
    scores = scores.masked_fill(~sees(q.size(1), k.size(1), window, scores.device), -math.inf)
    # in this order: float64 stays on the CPU
    return (scores.softmax(-1) @ v64).transpose(1, 2).to(q.dtype).to(q.device)


# --- PyTorch's scaled_dot_product_attention: everywhere ---


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    kernel: Callable[..., Tensor] = F.scaled_dot_product_attention,
) -> Tensor:
    """SDPA; a window shorter than the text is cut into blocks of queries, so the work grows with T
    * window, not T**2."""
    B, T, H, D = q.shape
    S, G = k.size(1), k.size(2)
    gqa = H != G
    if window is None or window >= S - 1:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if T == S:
            y = kernel(q, k, v, is_causal=True, enable_gqa=gqa)
        elif T == 1:
            y = kernel(q, k, v, enable_gqa=gqa)
        else:
            y = kernel(q, k, v, attn_mask=sees(T, S, None, q.device), enable_gqa=gqa)
        return y.transpose(1, 2)
    if T == 1:
        return sdpa(q, k[:, -window - 1 :], v[:, -window - 1 :], None, kernel)
    block = window
    if T != S or block < 1 or T % block or 2 * block > T:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y = kernel(q, k, v, attn_mask=sees(T, S, window, q.device), enable_gqa=gqa)
        return y.transpose(1, 2)
    # the first block has nothing before it and is plainly causal; block n >= 1 sees the window
    # before it and itself
    first = sdpa(q[:, :block], k[:, :block], v[:, :block], None, kernel)
    N = T // block - 1
    qb = q[:, block:].reshape(B * N, block, H, D)
    span = window + block
    # (B, N, G, D, span) -> rows of blocks
    kb = k.unfold(1, span, block).permute(0, 1, 4, 2, 3).reshape(B * N, span, G, D)
    vb = v.unfold(1, span, block).permute(0, 1, 4, 2, 3).reshape(B * N, span, G, D)
    qb, kb, vb = qb.transpose(1, 2), kb.transpose(1, 2), vb.transpose(1, 2)
    rest = kernel(qb, kb, vb, attn_mask=sees(block, span, window, q.device), enable_gqa=gqa)
    rest = rest.transpose(1, 2).reshape(B, T - block, H, D)
    return torch.cat((first, rest), 1)


# --- FlexAttention: compiled block-sparse kernels on CUDA ---

# (T, S, window, device) -> BlockMask; made before compiled code looks it up
_FLEX_MASKS: dict[tuple, object] = {}


def _flex_mask(T: int, S: int, window: int | None, device: torch.device):
    key = (T, S, window, str(device))
    if key not in _FLEX_MASKS:
        _FLEX_MASKS[key] = _make_flex_mask(T, S, window, device)
    return _FLEX_MASKS[key]


def _make_flex_mask(T: int, S: int, window: int | None, device: torch.device):
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b, h, i, j):
        position = i + (S - T)
        return (j <= position) if window is None else (j <= position) & (position - j <= window)

    return create_block_mask(visible, None, None, T, S, device=str(device))


@lru_cache(maxsize=1)
def _flex_compiled():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _effective(window: int | None, S: int) -> int | None:
    return window if window is not None and window < S - 1 else None


def flex(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """FlexAttention with a block mask; blocks outside the window are skipped. Needs torch.compile
    on a CUDA device."""
    from torch.nn.attention.flex_attention import flex_attention

    T, S = q.size(1), k.size(1)
    mask = _flex_mask(T, S, _effective(window, S), q.device)
    kernel = flex_attention if torch.compiler.is_compiling() else _flex_compiled()
    y = kernel(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=mask,
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)


# --- FlashAttention, with windows: PyTorch's own, or another version of its registry ---

# name -> the implementation in PyTorch's registry, and the package that brings it
FLASH: dict[str, tuple[str, str] | None] = {
    "flash": None,  # PyTorch's own, FlashAttention 2
    "fa3": ("FA3", "flash_attn_interface"),
    "fa4": ("FA4", "flash_attn"),
}


def flash(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """The version of FlashAttention that `activate` has named. Blocks outside the window are
    skipped. Queries that are not all positions go to SDPA."""
    from torch.nn.attention.varlen import varlen_attn

    B, T, H, D = q.shape
    if k.size(1) != T:
        return sdpa(q, k, v, window)
    starts = torch.arange(0, B * T + 1, T, dtype=torch.int32, device=q.device)
    left = _effective(window, T)
    y = varlen_attn(
        q.flatten(0, 1),
        k.flatten(0, 1),
        v.flatten(0, 1),
        starts,
        starts,
        T,
        T,
        window_size=(-1 if left is None else left, 0),
        enable_gqa=k.size(2) != H,
    )
    assert isinstance(y, Tensor)
    return y.view(B, T, H, D)


def activate(name: str) -> None:
    """Make the FlashAttention of this name the one that `flash` calls, in this process."""
    import torch.nn.attention as registry

    found = FLASH[name]
    wanted = found[0] if found else None
    if registry.current_flash_attention_impl() == wanted:
        return
    if wanted is None:
        registry.restore_flash_attention_impl()
    else:
        registry.activate_flash_attention_impl(wanted)


def prepare(name: str, T: int, windows: set[int | None], device: torch.device) -> None:
    """Make what compiled code only looks up: FlexAttention's block masks for training length T."""
    if name == "flex":
        for window in windows:
            _flex_mask(T, T, _effective(window, T), device)


BACKENDS: dict[str, Attend] = {
    "sdpa": sdpa,
    "flex": flex,
    **dict.fromkeys(FLASH, flash),
    "reference": reference,
}


def runnable(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this back-end cannot run here by what is known beforehand, or None."""
    if name == "flex":
        if device.type != "cuda":
            return "FlexAttention has a backward pass on CUDA only"
        if torch.cuda.get_device_capability(device) < (7, 5):
            return "FlexAttention needs compute capability 7.5"
    if name in FLASH:
        if device.type != "cuda" or dtype == torch.float32:
            return "FlashAttention is for bf16 on CUDA"
        if (asked := FLASH[name]) and importlib.util.find_spec(asked[1]) is None:
            return f"the package that has {asked[1]} is not installed"
        if name == "fa3" and torch.cuda.get_device_capability(device)[0] != 9:
            return "FlashAttention 3 is for compute capability 9"
    if name not in BACKENDS:
        return f"unknown; choose from auto, {', '.join(BACKENDS)}"
    return None


def prove(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    H: int,
    G: int,
    D: int,
    T: int,
    windows: set[int | None],
) -> str | None:
    """One small forward and backward pass of every window on this device against `reference`; the
    reason it fails, or None."""
    length = min(T, 256)
    generator = torch.Generator(device="cpu").manual_seed(0)
    # bf16 keeps 8 bits: 2**-8 times a few accumulated terms
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    precision = torch.get_float32_matmul_precision()
    # TF32 keeps 11 bits, less than the tolerance asks for
    torch.set_float32_matmul_precision("highest")
    try:
        if device.type == "cuda":  # SDPA's own FlashAttention is exchanged with it
            activate(name if name in FLASH else "flash")
        with torch.inference_mode(False), torch.enable_grad():
            return _prove(name, device, dtype, H, G, D, length, windows, generator, tolerance)
    except Exception as error:
        # whatever a kernel raises: a back-end that fails its proof is not chosen
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        torch.set_float32_matmul_precision(precision)


def _prove(name, device, dtype, H, G, D, length, windows, generator, tolerance) -> str | None:
    for window in sorted(windows, key=lambda w: -1 if w is None else w):
        w = None if window is None else min(window, length // 2)
        q, k, v = (
            torch.randn(1, length, heads, D, generator=generator).to(device, dtype)
            for heads in (H, G, G)
        )
        results = []
        for attend in (BACKENDS[name], reference):
            leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
            y = attend(leaves[0], leaves[1], leaves[2], w)
            y.float().square().sum().backward()
            results.append([y.detach(), *(x.grad for x in leaves)])
        for mine, true in zip(*results, strict=True):
            assert mine is not None and true is not None
            error = ((mine.float() - true.float()).abs().max() / true.float().abs().max()).item()
            if not error < tolerance:
                return f"differs from the reference by {error:.1e} at window {w}"
    return None


def choose(
    wanted: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    H: int,
    G: int,
    D: int,
    T: int,
    windows: set[int | None],
) -> tuple[str, str]:
    """The back-end to use and a sentence why. `wanted` is a name, or `auto`. Raises ValueError if a
    wanted one cannot run."""
    if wanted != "auto":
        problem = runnable(wanted, device, dtype) or prove(
            wanted, device, dtype, H=H, G=G, D=D, T=T, windows=windows
        )
        if problem:
            raise ValueError(
                f"attention={wanted} cannot run on {device}: {problem}; try attention=auto"
            )
        return wanted, "as asked, proven with a forward and backward pass"
    limited = any(w is not None and w < T - 1 for w in windows)
    # FA3 where it is installed: 9 % more tokens/s and twice the speed of FA2 (facts sheet 10.4)
    order = ["fa3", *(["flex", "sdpa"] if limited else ["sdpa", "flex"])]
    refused: list[tuple[str, str]] = []
    for name in order:
        problem = runnable(name, device, dtype) or prove(
            name, device, dtype, H=H, G=G, D=D, T=T, windows=windows
        )
        if problem is None:
            return name, "proven with a forward and backward pass" + "".join(
                f"; not {n}: {p}" for n, p in refused
            )
        refused.append((name, problem))
    raise ValueError(
        f"no attention back-end runs on {device}: " + "; ".join(f"{n}: {p}" for n, p in refused)
    )
