"""The original's own optimizer file after two steps of a tiny model, for
`tests/interop/test_moments.py`.

    TORCHDYNAMO_DISABLE=1 python experiments/parity/golden_moments.py DIR OUT

DIR is a checkout of the original. OUT becomes a folder with optim_000002_rank0.pt as its code saves
it, and expected.json: the sizes, and for every parameter the sums of its moments, found by the
tensor itself and not by an order.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from golden_eras import fixed_weights

SIZES = {
    "sequence_len": 16,
    "vocab_size": 40,
    "n_layer": 2,
    "n_head": 1,
    "n_kv_head": 1,
    "n_embd": 24,
}


def main(checkout: str, out: str) -> None:
    sys.path.insert(0, checkout)
    os.environ["NANOCHAT_DTYPE"] = "float32"
    from nanochat.gpt import GPT, GPTConfig  # the original's

    assert Path(checkout) in Path(sys.modules["nanochat"].__file__).parents
    known = {field.name for field in dataclasses.fields(GPTConfig)}
    gpt = GPT(GPTConfig(**SIZES, **({"window_pattern": "SL"} if "window_pattern" in known else {})))
    gpt.init_weights()
    for p in gpt.parameters():
        p.data = p.data.float()
    gpt.load_state_dict(
        fixed_weights({name: tuple(p.shape) for name, p in gpt.state_dict().items()})
    )
    made = gpt.setup_optimizers() if hasattr(gpt, "setup_optimizers") else gpt.setup_optimizer()
    optimizers = made if isinstance(made, list) else [made]
    ids = torch.randint(0, SIZES["vocab_size"], (2, 17), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        gpt(ids[:, :-1], ids[:, 1:].contiguous()).backward()
        for optimizer in optimizers:
            optimizer.step()
        gpt.zero_grad(set_to_none=True)
    sums = {}
    names = {id(p): name for name, p in gpt.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for k, p in enumerate(group["params"]):
                state = optimizer.state.get(p) or optimizer.state[group["params"][0]]
                stacked = (
                    state.get("momentum_buffer") is not None and state["momentum_buffer"].ndim == 3
                )
                found = {key: (v[k] if stacked else v) for key, v in state.items() if key != "step"}
                sums[names[id(p)]] = {key: float(v.double().sum()) for key, v in found.items()}
    place = Path(out)
    place.mkdir(parents=True, exist_ok=True)
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save(states if isinstance(made, list) else states[0], place / "optim_000002_rank0.pt")
    (place / "expected.json").write_text(
        json.dumps({"sizes": SIZES, "sums": sums}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
