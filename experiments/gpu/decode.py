"""Where the time of a step of decoding goes on this device: `python experiments/gpu/decode.py
[DEPTH] [VOCAB] [PROMPT] [DEVICE]`.

For one text: the engine's step, the compiled step in it, and what is left, which the device waits
for. Then the two things that a step is made of, each in the ways there are: attention of one query,
products of one row. Run it once more with TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1, which makes
inductor write the products of one row itself.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from nanochat.gpt import GPT, counts, from_depth
from nanochat.inference.cache import KVCache, kept_dtype
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.measure import any_tokenizer
from nanochat.inference.one_query import one_query_in_loops
from nanochat.inference.sampling import Sampling
from nanochat.runtime import hardware

depth, vocab, prompt = (
    int(word) for word in [*sys.argv[1:4], *("20", "65536", "1024")[len(sys.argv) - 1 :]]
)
device = hardware.pick_device(sys.argv[4] if len(sys.argv) > 4 else "auto")
dtype = hardware.compute_dtype("auto", device)[0]


def wait() -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def microseconds(do: Callable[[], object], times: int = 50) -> float:
    """Of one, many in a row, so that launching them overlaps with running them."""
    found = []
    for _ in range(5):
        do()
        wait()
        start = time.perf_counter()
        for _ in range(times):
            do()
        wait()
        found.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(found)


@torch.inference_mode()
def steps(gpt: GPT) -> None:
    engine = Engine(gpt, any_tokenizer(vocab), max_rows=1, prefill_tokens=None, compile=True)
    engine.submit([7] * prompt, Sampling(temperature=0, max_tokens=80, tools=False))
    for _ in range(8):
        engine.step()
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    whole = statistics.median(seconds) * 1e6
    cache: KVCache = engine.cache
    numbers = torch.tensor([[7, 7, cache.lengths[0]]], device=device)
    assert cache.compiled is not None
    alone = microseconds(lambda: cache.compiled(numbers, cache.keys, cache.values))  # type: ignore[misc]
    weights = dtype.itemsize * counts.matmul_parameters(gpt.config)
    read = weights + counts.kv_bytes_read(gpt.config, prompt + 40, kept_dtype(gpt).itemsize)
    peak = hardware.peak_bandwidth(device) or math.nan
    print(f"d{depth}, one text of {prompt} tokens, {dtype}, {hardware.detect(device, dtype).name}")
    for what, time_us in (("engine's step", whole), ("compiled step alone", alone)):
        print(f"{what:22} {time_us:8.0f} us   MBU {100 * read / (time_us * 1e-6) / peak:5.1f} %")
    print(f"{'left: draw, host':22} {whole - alone:8.0f} us")


@torch.inference_mode()
def attentions(gpt: GPT) -> None:
    c, kept = gpt.config, kept_dtype(gpt)
    compiled = torch.compile(one_query_in_loops, dynamic=False)
    print("attention of one query: rows, slots, us of SDPA, us of one_query_in_loops compiled")
    for rows in (1, 8, 64):
        for slots in (512, 2048):
            q = torch.randn(rows, c.n_head, c.head_dim, dtype=kept, device=device)
            k, v = (
                torch.randn(rows, c.n_kv_head, slots, c.head_dim, dtype=kept, device=device)
                for _ in range(2)
            )
            seen = (torch.arange(slots, device=device) <= prompt).expand(rows, slots)
            gqa = c.n_head != c.n_kv_head

            def sdpa(q=q, k=k, v=v, seen=seen, gqa=gqa) -> torch.Tensor:
                return F.scaled_dot_product_attention(
                    q[:, :, None], k, v, attn_mask=seen[:, None, None], enable_gqa=gqa
                )

            def written(q=q, k=k, v=v, seen=seen) -> torch.Tensor:
                return compiled(q, k, v, seen)

            assert (sdpa()[:, :, 0] - written()).abs().max() < 0.02, "the two differ"
            print(f"{rows:5} {slots:5} {microseconds(sdpa):8.1f} {microseconds(written):8.1f}")


@torch.inference_mode()
def products(gpt: GPT) -> None:
    d, peak = gpt.config.n_embd, hardware.peak_bandwidth(device) or math.nan
    summed = torch.compile(lambda weight, x: (weight * x).sum(-1), dynamic=False)
    print("product of one row: weight, us and % of the bandwidth of F.linear, of a sum compiled")
    for rows, columns in ((3 * d, d), (d, d), (4 * d, d), (d, 4 * d), (vocab, d)):
        weight, x = (torch.randn(n, columns, dtype=dtype, device=device) for n in (rows, 1))
        found = [
            microseconds(partial(F.linear, x, weight)),
            microseconds(partial(summed, weight, x)),
        ]
        share = [100 * weight.nbytes / (us * 1e-6) / peak for us in found]
        print(
            f"{rows:6} x {columns:5} {found[0]:8.1f} {share[0]:5.0f} % {found[1]:8.1f} "
            f"{share[1]:5.0f} %"
        )


network = FrozenGPT.build(from_depth(depth, vocab_size=vocab), device=device, compute_dtype=dtype)
steps(network)
attentions(network)
products(network)
