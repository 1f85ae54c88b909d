"""What a device may and may not compute in: Metal has no float64, CUDA multiplies fp32 as TF32
(facts sheet 1.8)."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.evals.bpb import BitsPerByteMetric, count
from nanochat.gpt import GPT, GPTConfig, attention
from nanochat.gpt.model import set_matmul_precision

CPU = torch.device("cpu")


class Metal(TorchDispatchMode):
    """Refuses float64 on `mps` in the words of PyTorch; the tensors are fake, so that this runs
    without a Mac."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type == "mps" and x.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                    "support float64"
                )
        return out


@pytest.fixture
def metal() -> Iterator[None]:
    with torch.no_grad(), FakeTensorMode(), Metal():
        yield


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
        lambda: torch.zeros(3, device="mps").double(),
    ],
)
def test_the_stand_in_for_metal_refuses_float64(metal, make):
    """The two tests below would notice."""
    with pytest.raises(TypeError, match="float64"):
        make()


@pytest.mark.parametrize("window", [None, 5])
def test_the_reference_needs_no_float64_on_metal(metal, window):
    q, k = torch.randn(1, 16, 4, 8, device="mps"), torch.randn(1, 16, 2, 8, device="mps")
    y = attention.reference(q, k, k, window)
    assert (y.shape, y.dtype, y.device.type) == (q.shape, torch.float32, "mps")


def test_bits_per_byte_needs_no_float64_on_metal(metal, monkeypatch):
    # x[i] asks for the device's driver before it comes to the fake tensor
    monkeypatch.setattr(torch.Tensor, "__getitem__", lambda x, i: torch.take(x, i))
    gpt = SimpleNamespace(
        device=torch.zeros(1, device="mps").device,
        losses=lambda idx, targets: torch.rand(targets.shape, device="mps"),
    )
    batch = {
        "idx": torch.zeros(2, 5, dtype=torch.long),
        "targets": torch.zeros(2, 5, dtype=torch.long),
    }
    # deepcopy of a fake tensor asks for its memory
    monkeypatch.setattr("torchmetrics.metric.deepcopy", lambda x: x)
    metric = BitsPerByteMetric(np.ones(8, dtype=np.int32)).to(gpt.device)
    count(metric, gpt, batch)
    count(metric, gpt, batch)
    assert (metric.nats.dtype, metric.nats.device.type) == (torch.int64, "mps")


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", "high"), ("cpu", "highest"), ("mps", "highest")]
)
def test_fp32_products_are_tf32_on_cuda_only(precision, device, expected):
    set_matmul_precision(torch.device(device))
    assert torch.get_float32_matmul_precision() == expected


def test_a_network_made_ready_on_a_cpu_multiplies_as_before(precision):
    GPT.build(GPTConfig(32, 100, 2, 2, 2, 32)).prepare(compute_dtype=torch.float32)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_back_end_is_proven_in_full_precision_whatever_is_set(precision, monkeypatch):
    """TF32 errs by 5e-4, the proof allows 1e-4; a second run in the same process has TF32 set
    already."""
    seen = []

    def looks(q, k, v, window):
        seen.append(torch.get_float32_matmul_precision())
        return attention.reference(q, k, v, window)

    monkeypatch.setitem(attention.BACKENDS, "sdpa", looks)
    torch.set_float32_matmul_precision("high")
    attention.choose("sdpa", CPU, torch.float32, H=2, G=2, D=8, T=32, windows={8})
    assert seen and set(seen) == {"highest"}
    assert torch.get_float32_matmul_precision() == "high"
