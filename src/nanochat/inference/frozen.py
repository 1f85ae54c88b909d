"""Frozen weights, laid out for products with few rows.

On a CPU they are packed by oneDNN, as inductor's freezing does it. MKL, which multiplies otherwise,
is made for many rows and for Intel: on two cores of a Zen 5, packed weights took 0.1 to 0.5 of its
time for 4 to 512 rows in fp32 and 0.3 to 0.5 for up to 16 in bf16, and with AVX2 alone 0.4 to 0.9
(measured: 2304 x 768 to 32768 x 768, experiments/decode_speed).
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# rows; measured: packed for 16, products with 1 to 512 take the time they take packed for just
# these
PACKED_FOR = 16
# measured, elements: a call of oneDNN costs 11 us, one of MKL 2; 256 x 256 is equal for 4 rows. In
# bf16 all is oneDNN's but the smallest, which is quicker in fp32 (2 x 12 and 64 rows: 12 and 5 us)
PACKING_PAYS = {torch.float32: 2**16, torch.bfloat16: 2**12}
# Numbers of rows that oneDNN is called with; others are padded or split. It compiles a program for
# every number of rows that it meets, and keeps it: 0.5 ms and 0.6 MiB for each (measured: 1024 x
# 256; a server under load grew to twice its size).
SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, *range(32, 64, 8), *range(64, 513, 32))
# measured: a loop over as many rows at once reads 440 MB at 28 GB/s; 1: 23, 2: 26, 8: 26 (two
# cores)
STREAMS = 4


@functools.cache
def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN runs here and is fast with this dtype. A trial product shows it."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    bf16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype != torch.float32 and not bf16:
        return False
    counting = torch.arange(64 * 64, dtype=torch.float32).view(64, 64)
    weight = counting.remainder(5).to(dtype)  # its products are exact in any order
    try:
        return torch.equal(_product(weight[:3], _packed(weight)), F.linear(weight[:3], weight))
    except (RuntimeError, AttributeError):  # the operators are inductor's own and may change
        return False


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR)


class FrozenWeight(NamedTuple):
    """A frozen weight (O, C), plain or packed."""

    weight: Tensor
    onednn: bool

    @classmethod
    def of(cls, weight: Tensor) -> "FrozenWeight":
        """Pack the weight where that pays; otherwise nothing is copied."""
        onednn = packs(weight.device, weight.dtype) and weight.numel() >= PACKING_PAYS[weight.dtype]
        return cls(_packed(weight) if onednn else weight, onednn)

    def unpacked(self) -> "FrozenWeight":
        """The plain weight, which compiled steps need."""
        weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        return self._replace(weight=weight)

    def times(self, x: Tensor) -> Tensor:
        """x (…, C) -> (…, O), as F.linear; without gradients."""
        if torch.compiler.is_compiling():
            return _compiled(x, self.weight)
        if self.onednn:
            return _in_sizes(x, self.weight)
        if x.is_cpu and x.dtype == torch.bfloat16 and self.weight.numel() < PACKING_PAYS[x.dtype]:
            # F.linear would compile a program of oneDNN for every number of rows, which sums in
            # fp32 too
            return F.linear(x.float(), self.weight.float()).to(x.dtype)
        return F.linear(x, self.weight)

    def parts(self, rows: Sequence[int]) -> Sequence[Tensor]:
        """The weight as parameters have it, in parts of so many rows; a copy where it is packed."""
        return self.unpacked().weight.split(list(rows))


def _in_sizes(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, C) -> (…, O), in calls of a number of rows that is one of SIZES."""
    rows = x.numel() // x.size(-1)
    size = SIZES[min(bisect_left(SIZES, rows), len(SIZES) - 1)]
    if rows == size or rows == 0:
        return _product(x, weight)
    flat = x.reshape(rows, -1)
    if rows < size:
        y = _product(F.pad(flat, (0, 0, 0, size - rows)), weight)[:rows]
    else:
        y = torch.cat([_in_sizes(part, weight) for part in flat.split(size)])
    return y.view(*x.shape[:-1], weight.size(0))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _compiled(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, C) -> (…, O), where inductor compiles it."""
    if not x.is_cpu or x.numel() != x.size(-1):
        return F.linear(x, weight)
    # one row: inductor makes a loop of its own of it, as fast as memory is read
    parts = weight.chunk(STREAMS) if weight.size(0) % STREAMS == 0 else (weight,)
    y = torch.cat([(part * x.reshape(1, -1)).sum(-1) for part in parts])
    return y.view(*x.shape[:-1], weight.size(0))
