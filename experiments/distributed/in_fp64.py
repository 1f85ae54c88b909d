"""Imported before nanochat, it makes every fp32 of this process fp64: the same code, with a
rounding error 5e8 times smaller."""

import io

import lightning.pytorch  # noqa: F401
import safetensors.torch  # noqa: F401
import torch

file = io.BytesIO()  # what reads and writes fp64 files looks up the names below, once
torch.save(torch.zeros(1, dtype=torch.float64), file)
file.seek(0)
torch.load(file)
torch.set_default_dtype(torch.float64)
torch.float32 = torch.float = torch.float64
torch.Tensor.float = torch.Tensor.double
