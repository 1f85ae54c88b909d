"""Convert a checkpoint of the original once: `python -m nanochat.import
src=~/.cache/nanochat/base_checkpoints/d20 out=DIR`.

This is optional: `ckpt=` and `init_from=` take such a checkpoint as it is and store the conversion.
Use it to choose the folder, for a tokenizer stored elsewhere, and for files whose era their tensors
do not determine.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.commands.app import command


def run(cfg: DictConfig) -> Path:
    from nanochat.checkpoint import imported

    out = Path(cfg.out).expanduser()
    if out.exists():
        raise ValueError(f"{out} exists already; choose another out=, or delete it")
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
    return out


main = command("import", run)

if __name__ == "__main__":
    main()
