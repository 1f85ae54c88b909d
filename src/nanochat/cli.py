"""Talk to a checkpoint: `python -m nanochat.cli ckpt=PATH`, or `prompt="Why is the sky blue?"` for one answer.

Lines are read from the terminal or a pipe; the conversation goes on from line to line until the input ends.
"""

import sys
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from nanochat.runtime.app import command


def run(cfg: DictConfig) -> None:
    from nanochat.checkpoint import folder
    from nanochat.checkpoint.runs import resolve
    from nanochat.inference.engine import Engine
    from nanochat.inference.generate import check
    from nanochat.runtime import hardware
    from nanochat.runtime.paths import base_dir
    from nanochat.tokenizer.conversations import parse, render_prompt

    settings: dict[str, Any] = {key: cfg[key] for key in ("max_tokens", "temperature", "top_k")}
    check(**settings)
    path = resolve(cfg.ckpt, base_dir() / "runs")
    if folder.phase(path) == "base":
        instead = f"python -m nanochat.sample ckpt={cfg.ckpt} start=…"
        raise ValueError(f"{cfg.ckpt} is a base checkpoint, which does not chat; continue a text with {instead}")
    device = hardware.pick_device(cfg.device)
    dtype, _ = hardware.compute_dtype(cfg.precision, device)
    gpt, tokenizer = folder.load_gpt(path, device=device, compute_dtype=dtype).eval(), folder.load_tokenizer(path)
    engine, context = Engine(gpt, tokenizer), gpt.config.sequence_len
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(lines() if cfg.prompt is None else [str(cfg.prompt)]):
        messages.append({"role": "user", "content": text})
        room = min(cfg.max_tokens, context // 2)  # for the answer
        while len(prompt := render_prompt(tokenizer, {"messages": messages})) > context - room and len(messages) > 2:
            messages = messages[2:]
            print(f"(the context of {context:,} tokens is full: the oldest turn is forgotten)")
        if len(prompt) >= context:
            print(f"(that is {len(prompt):,} tokens, more than the context of {context:,}: say it in fewer words)")
            messages.pop()
            continue
        (answer,) = engine.generate([prompt], seed=cfg.seed + number, **settings)
        parts = parse(tokenizer, answer.ids) or [{"type": "text", "text": "…"}]
        print("".join(shown(part) for part in parts))
        messages.append({"role": "assistant", "content": parts})


def shown(part: dict[str, str]) -> str:
    """A part as a person reads it: a call of the tool in brackets, its result after an arrow."""
    return {"text": "{}", "python": "[{}", "python_output": " → {}]"}[part["type"]].format(part["text"])


def lines() -> Iterator[str]:
    """What is typed or piped in, line by line; empty lines are passed over."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            text = input("you: " if terminal else "")
        except EOFError:
            return
        if text.strip():
            if not terminal:
                print(f"you: {text}")
            yield text


main = command("cli", run)

if __name__ == "__main__":
    main()
