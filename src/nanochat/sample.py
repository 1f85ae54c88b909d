"""Print samples of a checkpoint: `python -m nanochat.sample ckpt=PATH start="Once upon a time"
num_samples=3`."""

from omegaconf import DictConfig

from nanochat.commands.app import command


def run(cfg: DictConfig) -> None:
    from pathlib import Path

    from nanochat.checkpoint.opened import open_checkpoint
    from nanochat.inference.complete import complete
    from nanochat.inference.sampling import Sampling

    Sampling(max_tokens=cfg.max_tokens, temperature=cfg.temperature, top_k=cfg.top_k)
    if cfg.num_samples < 1:
        raise ValueError(f"num_samples={cfg.num_samples} must be at least 1")
    start = str(cfg.start)
    if start.startswith("FILE:"):
        start = Path(start.removeprefix("FILE:")).read_text(encoding="utf-8")
    opened = open_checkpoint(cfg.ckpt, device=cfg.device, precision=cfg.precision, force=cfg.force)
    texts = complete(
        opened.gpt,
        opened.tokenizer,
        [start],
        num_samples=cfg.num_samples,
        max_tokens=cfg.max_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        seed=cfg.seed,
    )
    for text in texts:
        print(f"{'-' * 16}\n{start}{text}")


main = command("sample", run)

if __name__ == "__main__":
    main()
