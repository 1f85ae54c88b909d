"""The hardware: device, peak rates, and the compute dtype that suits it."""

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

# from: facts sheet 5.3, dense bf16 FLOPs per second by part of the device's name, more specific
# names first
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165.2e12,
    "5090": 209.5e12,
    "3090": 71e12,
    "MI300X": 1.3074e15,
}
# from: facts sheet 7.6, bytes per second
PEAK_BANDWIDTH = {
    "GB200": 8e12,
    "B200": 8e12,
    "H100 NVL": 3.9e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "H200": 4.8e12,
    "A100": 2.0e12,
    "L40S": 864e9,
    "L4": 300e9,
    "4090": 1.01e12,
    "5090": 1.79e12,
    "3090": 936e9,
}
# from: the makers' data sheets, decimal bytes
CARD_MEMORY = {
    "B200": 180e9,
    "H200": 141e9,
    "H100": 80e9,
    "A100": 80e9,
    "L40S": 48e9,
    "L4": 24e9,
    "5090": 32e9,
    "4090": 24e9,
    "3090": 24e9,
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Hardware:
    device: torch.device
    name: str
    # FLOPs per second in the compute dtype; None if unknown (no MFU is shown then)
    peak_flops: float | None
    memory_bytes: int


def compute_dtype(precision: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of activations and matrix products, and the reason for it.

    `precision` is auto, bf16 or fp32; master weights are always fp32. auto is bf16 where the
    hardware multiplies bf16 (CUDA from capability 8.0, CPUs with AVX-512-BF16 or AMX), else fp32.
    """
    if precision in DTYPES:
        return DTYPES[precision], "as asked"
    if precision != "auto":
        raise ValueError(
            f"precision={precision!r} is not known; choose from auto, {', '.join(DTYPES)}"
        )
    yes, why = multiplies_bf16(device)
    return (torch.bfloat16 if yes else torch.float32), why


def multiplies_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether this hardware multiplies bf16, and how that is known. Metal counts as no: not
    measured."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"compute capability {major}.{minor}" + (
            "" if major >= 8 else " is below 8.0"
        )
    if device.type == "cpu":
        flag = next((f for f in ("amx_bf16", "avx512_bf16") if f in cpu_flags()), None)
        return flag is not None, f"this CPU has {flag or 'no bf16 arithmetic'}"
    return False, f"fp32 on {device.type}"


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the CPU on Linux; empty on other systems."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    for line in info.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@lru_cache(maxsize=4)
def cpu_peak_flops(dtype: torch.dtype) -> float:
    """Best rate of a 1024-cube matrix product in several tries, in FLOPs per second: the peak for
    MFU on a CPU.

    PyTorch has two libraries for it. fp32 uses MKL, which was the slower one on an AMD CPU (0.45 of
    oneDNN's rate, Zen 5).
    """
    n = 1024
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    products = [lambda: a @ b]
    if torch.backends.mkldnn.is_available():
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    best = 0.0
    for product in products:
        # oneDNN does not support every dtype on every CPU
        with suppress(RuntimeError, AttributeError):
            for _ in range(8):
                start = time.perf_counter()
                product()
                best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


@lru_cache(maxsize=1)
def cpu_peak_bandwidth() -> float:
    """Best rate of reading 256 MiB in several tries, in bytes per second: the peak for MBU on a
    CPU."""
    values = torch.ones(2**26)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        values.sum()
        best = max(best, values.nbytes / (time.perf_counter() - start))
    return best


def peak_bandwidth(device: torch.device) -> float | None:
    """Memory bandwidth of the device in bytes per second: from the table on CUDA, measured on a
    CPU, else None."""
    if device.type == "cpu":
        return cpu_peak_bandwidth()
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_properties(device).name.lower()
    return next((rate for part, rate in PEAK_BANDWIDTH.items() if part.lower() in name), None)


def detect(device: torch.device, dtype: torch.dtype) -> Hardware:
    """The device and its peak in `dtype`: from the table on CUDA (bf16 only), measured on a CPU."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        peaks = PEAK_FLOPS if dtype == torch.bfloat16 else {}
        peak = next(
            (flops for part, flops in peaks.items() if part.lower() in properties.name.lower()),
            None,
        )
        return Hardware(device, properties.name, peak, properties.total_memory)
    memory = _system_memory()
    if device.type == "cpu":
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
        return Hardware(device, name, cpu_peak_flops(dtype), memory)
    return Hardware(device, platform.machine(), None, memory)


def _system_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def limit_memory(device: torch.device, gigabytes: float | None) -> None:
    """Let this process take at most so many decimal GB of a GPU; more is an OutOfMemoryError. A CPU
    has no such limit."""
    if gigabytes is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(gigabytes * 1e9 / total, 1.0), device)


def reset_peak(device: torch.device) -> None:
    """Reset what `peak_gib` reports."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux; elsewhere the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def memory_used(device: torch.device) -> int:
    """Bytes that the GPU's allocator, else this process, has now; the peak begins anew. 0 if
    unknown. Of a process without what is mapped from files, which the system takes back at will."""
    reset_peak(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return 1024 * _kilobytes("RssAnon")


def memory_peak(device: torch.device) -> int:
    """The most of what `memory_used` gives since it was called; of a process about, as what is
    mapped from files is taken to be what it is now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * (_kilobytes("VmHWM") - _kilobytes("RssFile") - _kilobytes("RssShmem"))


def _kilobytes(name: str) -> int:
    """A number of /proc/self/status; 0 where there is none."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    match = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) if match else 0


def peak_gib(device: torch.device) -> float:
    """Peak memory since `reset_peak` in GiB: of the GPU, else of this process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _kilobytes("VmHWM") / 2**20


@contextmanager
def measured(numbers: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Add the seconds of the block to `seconds/{name}`, and its peak memory, if larger, to
    `memory/{name}_gib`."""
    reset_peak(device)
    start = time.perf_counter()
    yield
    seconds, memory = f"seconds/{name}", f"memory/{name}_gib"
    numbers[seconds] = numbers.get(seconds, 0.0) + time.perf_counter() - start
    numbers[memory] = max(numbers.get(memory, 0.0), peak_gib(device))


# what torch.compile needs: variable, names, language, Debian's packages. Triton builds what starts
# its kernels in C
COMPILERS = {
    "cpu": ("CXX", ("g++", "clang++"), "C++", "g++"),
    "cuda": ("CC", ("gcc", "clang"), "C", "gcc libc6-dev"),
}


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds the compiler that it needs for `device`."""
    if device.type not in COMPILERS:
        return True
    variable, names, *_ = COMPILERS[device.type]
    return any(map(shutil.which, filter(None, (os.environ.get(variable), *names))))


def check_compiler(key: str, device: torch.device) -> None:
    """ValueError if `key`=true asks for compilation on `device` and no compiler is installed."""
    if not has_compiler(device):
        *_, language, packages = COMPILERS[device.type]
        raise ValueError(
            f"{key}=true needs a {language} compiler for {device.type}, and there is none here; on "
            f"Debian or Ubuntu: apt-get install {packages}, or {key}=false"
        )


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one, else Metal, else the CPU; other names are torch's."""
    if name == "auto":
        return torch.device(
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name} is not known; choose from auto, cpu, cuda, mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name} but torch sees no CUDA device here; try device=cpu")
    return device


def on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which streams and graphs of this thread belong to this GPU; does nothing for
    other devices."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def accelerator_device(accelerator: str, local_rank: int = 0) -> torch.device:
    """The device of this process for Lightning's accelerator names; ValueError for a missing
    device."""
    if accelerator in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            raise ValueError(
                "trainer.accelerator=gpu but torch sees no CUDA device here; try trainer=cpu"
            )
        return torch.device("cuda", local_rank)
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(
                "trainer.accelerator=mps but this is not a Mac with Metal; try trainer=cpu"
            )
        return torch.device("mps")
    if accelerator == "cpu":
        return torch.device("cpu")
    raise ValueError(f"trainer.accelerator={accelerator!r} is not known; choose from cpu, gpu, mps")
