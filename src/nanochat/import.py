"""Convert a checkpoint of the original once: `python -m nanochat.import
src=~/.cache/nanochat/base_checkpoints/d20 out=DIR`.

This is optional: `ckpt=` and `init_from=` take such a checkpoint as it is and store the conversion.
Use it to choose the folder, for a tokenizer stored elsewhere, and for files whose era their tensors
do not determine.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command, overridden


def run(cfg: DictConfig) -> Path:
    import sys

    from nanochat.checkpoint import imported
    from nanochat.checkpoint.runs import described
    from nanochat.interop import huggingface

    out = Path(cfg.out).expanduser()
    if out.exists():
        raise ValueError(f"{out} exists already; choose another out=, or delete it")
    if cfg.src.startswith(huggingface.PREFIX):
        if word := overridden("tokenizer_dir") + overridden("arch"):
            raise ValueError(f"{word[0]} cannot take effect: {cfg.src} brings its own; drop it")
        imported.convert_gpt2(cfg.src, imported.hub_place(cfg.src), out, cfg.chat_tokens)
        print(described(out), file=sys.stderr)
        return out
    if cfg.chat_tokens:
        raise ValueError(
            "chat_tokens=true is for a GPT-2, src=hf:…; the original's tokenizers have them; drop "
            "it"
        )
    found = imported.find(
        cfg.src, Path(cfg.tokenizer_dir).expanduser() if cfg.tokenizer_dir else None
    )
    if found is None:
        raise ValueError(
            f"{cfg.src} holds no model_STEP.pt, and is not a model on the hub (ORG/NAME); give the "
            "folder with it"
        )
    arch: Any = OmegaConf.to_container(cfg.arch) if cfg.arch else None
    imported.convert(found, out, arch)
    print(described(out), file=sys.stderr)
    return out


main = command("import", run)

if __name__ == "__main__":
    main()
