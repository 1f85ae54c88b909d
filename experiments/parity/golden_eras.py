"""Logits that the original's own code gives for fixed weights, for `tests/interop/test_eras.py`.

    python experiments/parity/golden_eras.py DIR ERA OUT.npz

DIR is a checkout of the original at a commit of that era. Its GPT is filled with `fixed_weights`
and read on a CPU in fp32; the last positions' logits are added to OUT.npz under the era's name. Run
it once per era, each with its own checkout.
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import torch

SIZES = {
    "sequence_len": 256,
    "vocab_size": 265,
    "n_layer": 4,
    "n_head": 2,
    "n_kv_head": 2,
    "n_embd": 64,
}
PATTERN, LENGTH, KEPT = "SSL", 250, 4  # longer than the short windows


def fixed_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The same numbers for the same names and shapes, everywhere: matrices of a size that keeps
    activations near 1."""
    random, result = np.random.RandomState(0), {}
    for name in sorted(shapes):
        shape = shapes[name]
        scale = 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        offset = 1.0 if name == "resid_lambdas" else 0.0
        result[name] = torch.from_numpy(
            (random.standard_normal(shape) * scale + offset).astype(np.float32)
        )
    return result


def fixed_ids() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(1).randint(0, SIZES["vocab_size"], (1, LENGTH)))


def main(checkout: str, era: str, out: str) -> None:
    sys.path.insert(0, checkout)
    os.environ["NANOCHAT_DTYPE"] = "float32"
    from nanochat.gpt import GPT, GPTConfig  # the original's

    assert Path(checkout) in Path(sys.modules["nanochat"].__file__).parents
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    config = {**SIZES, **({"window_pattern": PATTERN} if "window_pattern" in known else {})}
    gpt = GPT(GPTConfig(**config))
    gpt.init_weights()
    weights = fixed_weights({name: tuple(p.shape) for name, p in gpt.state_dict().items()})
    gpt.load_state_dict(weights)
    for parameter in gpt.parameters():
        parameter.data = parameter.data.float()  # not the tables of RoPE
    gpt.eval()
    with torch.no_grad():
        logits = gpt(fixed_ids())[0, -KEPT:].float().numpy()
    before = dict(np.load(out)) if Path(out).exists() else {}
    np.savez_compressed(out, **{**before, era: logits})
    print(era, logits.shape, float(np.abs(logits).max()))


if __name__ == "__main__":
    main(*sys.argv[1:])
