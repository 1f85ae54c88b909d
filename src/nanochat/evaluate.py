"""Evaluate a checkpoint: `python -m nanochat.evaluate ckpt=PATH evals=bpb,sample,arc_easy`.

The validation text is that of the run the checkpoint comes from (after RL, of the run before it), unless `data=…` names another.
Besides bpb and sample an evaluation is a task of `conf/task` that can be scored.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from nanochat.runtime.app import choices, command, compose_choice


def run(cfg: DictConfig) -> dict[str, Any]:
    from hydra.utils import instantiate

    from nanochat.checkpoint.opened import open_checkpoint
    from nanochat.evals.bpb import bits_per_byte
    from nanochat.evals.chat import accuracy
    from nanochat.inference.complete import complete

    names = list(cfg.evals) if isinstance(cfg.evals, ListConfig) else str(cfg.evals).split(",")
    known = ["bpb", "sample", *choices("task")]
    if unknown := [n for n in names if n not in known]:
        scored = [name for name in known if name in ("bpb", "sample") or can_be_scored(name)]
        raise ValueError(
            f"evals={unknown[0]} is not known; choose from {', '.join(scored)}; several as evals=bpb,sample"
        )
    tasks = {name: task(name, cfg.split) for name in names if name not in ("bpb", "sample")}
    opened = open_checkpoint(cfg.ckpt, device=cfg.device, precision=cfg.precision)
    path, gpt, tokenizer = opened.path, opened.gpt, opened.tokenizer
    dtype = str(opened.dtype).removeprefix("torch.")
    results: dict[str, Any] = {"checkpoint": str(path), "dtype": f"{dtype} ({opened.why})"}
    if "bpb" in names:
        if cfg.get("data") and "rows_per_device" not in cfg.data:
            raise ValueError("data=questions has no text to judge a model by; choose another, as data=pydocs")
        config: Any = OmegaConf.to_container(cfg.data, resolve=True) if cfg.get("data") else validation_data(path)
        data = instantiate({**config, "sequence_len": gpt.config.sequence_len, "rows_per_device": cfg.rows_per_device})
        data.attach(tokenizer, batch_tokens=gpt.config.sequence_len * cfg.rows_per_device)
        data.prepare_data()
        results.update(bits_per_byte(gpt, data.val_batches(cfg.eval_tokens), tokenizer.token_bytes))
    for name, conversations in tasks.items():
        found = accuracy(
            gpt, tokenizer, conversations, limit=cfg.limit, max_tokens=cfg.max_tokens, batch_rows=cfg.rows_per_device
        )
        results[name] = found["accuracy"]
        results[f"{name}_of"] = f"{found['correct']:g} of {found['total']:g}" + (
            f", {found['skipped']:g} too long" if found["skipped"] else ""
        )
    for key, value in results.items():
        print(f"{key}: {value:.6f}" if isinstance(value, float) else f"{key}: {value}")
    if "sample" in names:
        settings: Any = OmegaConf.to_container(cfg.sample, resolve=True)
        prompts = settings.pop("prompts")
        for prompt, text in zip(prompts, complete(gpt, tokenizer, prompts, **settings), strict=True):
            print(f"sample: {prompt + text!r}")
    return results


def validation_data(checkpoint: Path) -> dict[str, Any]:
    """The `data` of the run that a checkpoint comes from; of the nearest one before it where that had questions, not text.

    ValueError if there is none.
    """
    from nanochat.checkpoint import folder

    lineage = folder.read_lineage(checkpoint)
    data = lineage["config"].get("data") or {}
    if "rows_per_device" in data:
        return data
    parent = (lineage.get("parent") or {}).get("path")
    if parent and Path(parent).is_dir():
        return validation_data(Path(parent))
    raise ValueError(
        f"{checkpoint} was trained without a validation text that bpb could take; say which, as data=pydocs"
    )


def can_be_scored(name: str) -> bool:
    """Whether something in a task of `conf/task` is right or wrong."""
    from hydra.utils import get_class

    return get_class(compose_choice("task", name)["_target_"]).kind != "chat"  # type: ignore[attr-defined]


def task(name: str, split: str) -> Any:
    """A task of `conf/task`, its `split` if it has several."""
    from hydra.utils import instantiate

    config = compose_choice("task", name)
    if "split" in config:
        config["split"] = split
    return instantiate(config)


main = command("evaluate", run)

if __name__ == "__main__":
    main()
