"""Speed of reading and writing: `python -m nanochat.bench ckpt=PATH`, or `model=d12
vocab_size=32768` for fresh weights.

The last line is all of it as JSON.
"""

import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command, overridden


def run(cfg: DictConfig) -> dict[str, Any]:
    from nanochat.checkpoint.opened import open_checkpoint
    from nanochat.gpt.config import build_arch, from_depth
    from nanochat.inference.frozen_gpt import FrozenGPT
    from nanochat.inference.measure import any_tokenizer, measure
    from nanochat.runtime import hardware

    if cfg.ckpt is not None:
        for key in ("model", "arch", "vocab_size", "seed"):
            if words := overridden(key):
                raise ValueError(
                    f"{words[0]} cannot take effect: ckpt={cfg.ckpt} brings its own; drop one of "
                    "the two"
                )
        opened = open_checkpoint(cfg.ckpt, device=cfg.device, precision=cfg.precision)
        gpt, tokenizer, what = opened.gpt, opened.tokenizer, str(opened.path)
    else:
        device = hardware.pick_device(cfg.device)
        dtype, _ = hardware.compute_dtype(cfg.precision, device)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        tokenizer = any_tokenizer(cfg.vocab_size)
        gpt_config = from_depth(
            **config["model"], vocab_size=cfg.vocab_size, arch=build_arch(config["arch"])
        )
        gpt = FrozenGPT.build(gpt_config, seed=cfg.seed, device=device, compute_dtype=dtype)
        what = f"fresh weights, depth {gpt_config.n_layer}, vocabulary {cfg.vocab_size:,}"
    batches = [cfg.batches] if isinstance(cfg.batches, int) else list(cfg.batches)
    found = measure(
        gpt,
        tokenizer,
        prompt_tokens=cfg.prompt_tokens,
        decode_tokens=cfg.decode_tokens,
        batches=batches,
        temperature=cfg.temperature,
        repeats=cfg.repeats,
        compile=cfg.compile,
    )
    prefill = found["prefill"]
    print(f"{what}, {found['num_params']:,} parameters, {found['dtype']} on {found['device']}")
    print(
        f"prefill of {cfg.prompt_tokens} tokens: {prefill['tok_per_sec']:,.0f} tokens/s, MFU "
        f"{percent(prefill['mfu_percent'])}"
    )
    print("  rows  first token  step ms  tokens/s    MBU    MFU")
    for row in found["sweep"]:
        print(
            f"{row['batch']:6d} {1000 * row['first_token_seconds']:9.1f} ms "
            f"{1000 * row['step_seconds']:8.2f} {row['tokens_per_second']:9,.0f} "
            f"{percent(row['mbu_percent']):>6} {percent(row['mfu_percent']):>6}"
        )
    print(json.dumps(found | {"source": what}))
    return found


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} %"


main = command("bench", run)

if __name__ == "__main__":
    main()
