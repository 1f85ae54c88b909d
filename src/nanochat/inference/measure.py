"""How fast an engine reads and writes, and how much of the device's bandwidth and arithmetic that
is (facts sheet 7.6)."""

import random
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nanochat.gpt import GPT, GPTConfig, counts
from nanochat.inference.cache import kept_dtype
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.sampling import Sampling
from nanochat.runtime import hardware
from nanochat.tokenizer.tokenizer import BPETokenizer, Tokenizer


@dataclass(frozen=True)
class Decoding:
    """Rates with `batch` texts side by side. MBU counts weights and keys and values once per step;
    None where the peak is unknown."""

    batch: int
    first_token_seconds: float  # all prompts read, one token of each written
    step_seconds: float  # the median of the steps after that
    tokens_per_second: float  # batch / step_seconds
    mbu_percent: float | None
    mfu_percent: float | None
    peak_bytes: int | None  # of device memory; None on a CPU


def any_tokenizer(vocab_size: int) -> Tokenizer:
    """One with that many ids, for weights that have not learned any. ValueError for a size that
    bytes and specials do not leave."""
    pairs = vocab_size - BPETokenizer([]).vocab_size
    if not 0 <= pairs <= 256**2:
        least = BPETokenizer([]).vocab_size
        raise ValueError(f"vocab_size={vocab_size} must be between {least} and {least + 256**2:,}")
    return BPETokenizer([divmod(n, 256) for n in range(pairs)])


def measure(
    gpt: GPT,
    tokenizer: Tokenizer,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    batches: list[int],
    temperature: float,
    repeats: int,
    compile: bool = False,
) -> dict[str, Any]:
    """Rates of reading one prompt and of decoding `batches` different prompts; the best of
    `repeats` for the prompt, all for the steps.

    ValueError for sizes that do not fit the model.
    """
    gpt, config, device = FrozenGPT.of(gpt), gpt.config, gpt.device
    _check(config, prompt_tokens, decode_tokens, batches, repeats)
    machine, bandwidth = hardware.detect(device, gpt.compute_dtype), hardware.peak_bandwidth(device)
    drawn, value_bytes = random.Random(0), kept_dtype(gpt).itemsize
    weight_bytes = gpt.compute_dtype.itemsize * counts.matmul_parameters(config)
    context = prompt_tokens + decode_tokens // 2
    kv_read = counts.kv_bytes_read(config, context, value_bytes)
    flops = counts.decode_flops(config, context)

    def percent(rate: float, peak: float | None) -> float | None:
        return None if peak is None else 100 * rate / peak

    def run(batch: int) -> tuple[float, list[float]]:
        engine = Engine(
            gpt, tokenizer, max_rows=batch, prefill_tokens=None, ends=(), compile=compile
        )
        ids = range(config.vocab_size - len(tokenizer.specials))
        prompts = [drawn.choices(ids, k=prompt_tokens) for _ in range(batch)]
        return _decode(engine, prompts, temperature, decode_tokens)

    run(batches[0])  # kernels are chosen, memory is taken
    prefill = min(
        _prefill(gpt, [drawn.randrange(config.vocab_size) for _ in range(prompt_tokens)])
        for _ in range(repeats)
    )
    sweep = []
    for batch in batches:
        if compile:
            run(batch)  # each size is compiled when it is first met
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        runs = [run(batch) for _ in range(repeats)]
        step = statistics.median(seconds for _, steps in runs for seconds in steps)
        sweep.append(
            Decoding(
                batch,
                min(first for first, _ in runs),
                step,
                batch / step,
                percent((weight_bytes + batch * kv_read) / step, bandwidth),
                percent(batch * flops / step, machine.peak_flops),
                torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            )
        )
    return {
        "device": machine.name,
        "dtype": str(gpt.compute_dtype).removeprefix("torch."),
        "peak_bandwidth_bytes_per_sec": bandwidth,
        "peak_flops_per_sec": machine.peak_flops,
        "num_params": counts.parameters(config)["total"],
        "weight_bytes": weight_bytes,
        "kv_bytes_per_token": counts.kv_bytes_per_token(config, value_bytes),
        "kv_read_bytes_per_step": kv_read,
        "decode_flops_per_token": flops,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "temperature": temperature,
        "compile": compile,
        "ceiling_bs1_tok_per_sec": None
        if bandwidth is None
        else bandwidth / (weight_bytes + kv_read),
        "prefill": {
            "tok_per_sec": prompt_tokens / prefill,
            "time_sec": prefill,
            "mfu_percent": percent(
                counts.prefill_flops(config, prompt_tokens) / prefill, machine.peak_flops
            ),
        },
        "sweep": [asdict(row) for row in sweep],
    }


def _check(
    config: GPTConfig, prompt_tokens: int, decode_tokens: int, batches: list[int], repeats: int
) -> None:
    for name, value, least in (
        ("prompt_tokens", prompt_tokens, 1),
        ("decode_tokens", decode_tokens, 2),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    if not batches or not all(isinstance(batch, int) and batch >= 1 for batch in batches):
        raise ValueError(
            f"batches={batches} must be a list of numbers from 1 up, as batches=[1,8,64]"
        )
    if prompt_tokens + decode_tokens > config.sequence_len:
        raise ValueError(
            f"prompt_tokens={prompt_tokens} and decode_tokens={decode_tokens} are more than the "
            f"model's sequence_len={config.sequence_len:,}; lower one of them"
        )


def _decode(
    engine: Engine, prompts: list[list[int]], temperature: float, tokens: int
) -> tuple[float, list[float]]:
    """Seconds to the first token of all, and of each step after it."""
    for n, prompt in enumerate(prompts):
        engine.submit(
            prompt, Sampling(temperature=temperature, max_tokens=tokens, seed=n, tools=False)
        )
    steps = []
    while engine.busy:
        start = time.perf_counter()
        engine.step()  # its tokens are here then; a GPU may be at the next ones already
        steps.append(time.perf_counter() - start)
    return steps[0], steps[1:]


@torch.inference_mode()
def _prefill(gpt: GPT, prompt: list[int]) -> float:
    """Seconds to read a prompt and to have the logits after it."""
    idx = torch.tensor([prompt], device=gpt.device)
    _wait(idx.device)
    start = time.perf_counter()
    gpt.logits(gpt.hidden(idx)[:, -1])
    _wait(idx.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
