"""What the plan's estimate and the MFU divide by: the peak of the device in the dtype that is
used."""

from types import SimpleNamespace

import pytest
import torch

from nanochat.runtime import hardware

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def card(monkeypatch, name):
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(name=name, total_memory=80 * 2**30),
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", None),
    ],
)
def test_a_card_in_bf16_has_the_peak_of_the_facts_sheet(monkeypatch, name, peak):
    card(monkeypatch, name)
    assert hardware.detect(CUDA, torch.bfloat16).peak_flops == peak


def test_a_card_in_fp32_has_no_known_peak(monkeypatch):
    """The table is of bf16; an MFU against it would be many times too low."""
    card(monkeypatch, "NVIDIA H100 80GB HBM3")
    found = hardware.detect(CUDA, torch.float32)
    assert (found.peak_flops, found.memory_bytes) == (None, 80 * 2**30)


@pytest.mark.parametrize(
    ("flags", "dtype", "why"),
    [
        ({"avx2", "avx512_bf16"}, torch.bfloat16, "this CPU has avx512_bf16"),
        ({"amx_bf16", "avx512_bf16"}, torch.bfloat16, "this CPU has amx_bf16"),
        ({"avx2"}, torch.float32, "this CPU has no bf16 arithmetic"),
    ],
    ids=["avx512", "amx", "neither"],
)
def test_auto_is_bf16_where_the_cpu_multiplies_it(monkeypatch, flags, dtype, why):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    assert hardware.compute_dtype("auto", CPU) == (dtype, why)


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [
        ((9, 0), torch.bfloat16, "compute capability 9.0"),
        ((7, 5), torch.float32, "compute capability 7.5 is below 8.0"),
    ],
)
def test_auto_is_bf16_on_cuda_from_capability_8(monkeypatch, capability, dtype, why):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hardware.compute_dtype("auto", CUDA) == (dtype, why)
