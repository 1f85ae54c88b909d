"""Evaluate a checkpoint: `python -m nanochat.evaluate ckpt=PATH evals=bpb,sample`.

The validation text is that of the run the checkpoint comes from, unless `data=…` names another.
"""

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from nanochat.runtime.app import command


def run(cfg: DictConfig) -> dict[str, Any]:
    from hydra.utils import instantiate

    from nanochat.checkpoint import folder
    from nanochat.checkpoint.runs import resolve
    from nanochat.evals.bpb import bits_per_byte
    from nanochat.inference.generate import complete
    from nanochat.runtime import hardware
    from nanochat.runtime.paths import base_dir

    names = list(cfg.evals) if isinstance(cfg.evals, ListConfig) else str(cfg.evals).split(",")
    if unknown := [n for n in names if n not in ("bpb", "sample")]:
        raise ValueError(f"evals={unknown[0]} is not known; choose from bpb, sample, several as evals=[bpb,sample]")
    path = resolve(cfg.ckpt, base_dir() / "runs")
    device = hardware.pick_device(cfg.device)
    dtype, why = hardware.compute_dtype(cfg.precision, device)
    gpt, tokenizer = folder.load_gpt(path, device=device, compute_dtype=dtype).eval(), folder.load_tokenizer(path)
    results: dict[str, Any] = {"checkpoint": str(path), "dtype": f"{str(dtype).removeprefix('torch.')} ({why})"}
    if "bpb" in names:
        config: Any = (
            OmegaConf.to_container(cfg.data, resolve=True)
            if cfg.get("data")
            else folder.read_lineage(path)["config"]["data"]
        )
        data = instantiate({**config, "sequence_len": gpt.config.sequence_len, "rows_per_device": cfg.rows_per_device})
        data.attach(tokenizer, batch_tokens=gpt.config.sequence_len * cfg.rows_per_device)
        data.prepare_data()
        results.update(bits_per_byte(gpt, data.val_batches(cfg.eval_tokens), tokenizer.token_bytes))
    for key, value in results.items():
        print(f"{key}: {value:.6f}" if isinstance(value, float) else f"{key}: {value}")
    if "sample" in names:
        settings: Any = OmegaConf.to_container(cfg.sample, resolve=True)
        prompts = settings.pop("prompts")
        for prompt, text in zip(prompts, complete(gpt, tokenizer, prompts, **settings), strict=True):
            print(f"sample: {prompt + text!r}")
    return results


main = command("evaluate", run)

if __name__ == "__main__":
    main()
