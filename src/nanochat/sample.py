"""Print samples of a checkpoint: `python -m nanochat.sample ckpt=PATH start="Once upon a time" num_samples=3`."""

from omegaconf import DictConfig

from nanochat.runtime.app import command


def run(cfg: DictConfig) -> None:
    from pathlib import Path

    from nanochat.checkpoint import folder
    from nanochat.checkpoint.runs import resolve
    from nanochat.inference.generate import check, complete
    from nanochat.runtime import hardware
    from nanochat.runtime.paths import base_dir

    check(max_tokens=cfg.max_tokens, temperature=cfg.temperature, top_k=cfg.top_k, num_samples=cfg.num_samples)
    start = str(cfg.start)
    if start.startswith("FILE:"):
        start = Path(start.removeprefix("FILE:")).read_text()
    path = resolve(cfg.ckpt, base_dir() / "runs")
    device = hardware.pick_device(cfg.device)
    dtype, _ = hardware.compute_dtype(cfg.precision, device)
    gpt, tokenizer = folder.load_gpt(path, device=device, compute_dtype=dtype).eval(), folder.load_tokenizer(path)
    print(f"checkpoint: {path}")
    texts = complete(
        gpt,
        tokenizer,
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
