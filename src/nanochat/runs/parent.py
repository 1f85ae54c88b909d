"""What a run takes from the checkpoint it starts from: its sizes always, and the settings its phase says it inherits.

What was typed wins, or is refused where it cannot: a checkpoint has one architecture and one tokenizer.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.checkpoint.folder import read_config, read_lineage
from nanochat.gpt import from_depth

# settings that the parent's record has under another name than its config, where `auto` became a number
RECORDED = {"batch_tokens": ("plan", "batch_tokens")}
# from: facts sheet 5.5, for a checkpoint that does not say
FALLBACKS = {"batch_tokens": 2**19, "data.rows_per_device": 32}

Inherited = list[tuple[str, str, str]]  # setting, value, source


def take_sizes(cfg: DictConfig, checkpoint: Path, overridden: Callable[[str], list[str]]) -> None:
    """The checkpoint that a run starts from decides its model, and whatever follows from it; what was typed must agree."""
    parent = read_config(checkpoint)
    if words := overridden("arch") + overridden("tokenizer"):
        raise ValueError(
            f"{words[0]} cannot take effect: init_from={cfg.init_from} brings its own architecture and tokenizer; drop one of the two"
        )
    words = overridden("model")
    sizes = {k: getattr(parent, k) for k in ("n_layer", "n_head", "n_kv_head", "n_embd", "sequence_len")}
    if words:
        model = {k: v for k, v in cfg.model.items() if k != "depth"}
        typed = from_depth(cfg.model.depth, vocab_size=parent.vocab_size, arch=parent.arch, **model)
        compared = set(sizes) - (set() if overridden("model.sequence_len") else {"sequence_len"})
        if wrong := [k for k in sorted(compared) if getattr(typed, k) != sizes[k]]:
            raise ValueError(
                f"{words[0]} cannot take effect: it means {wrong[0]}={getattr(typed, wrong[0])}, and init_from={cfg.init_from} has "
                f"{wrong[0]}={sizes[wrong[0]]}; drop one of the two"
            )
    OmegaConf.update(cfg, "model", {"depth": parent.n_layer, **sizes})
    cfg.arch = asdict(parent.arch)


def inherit(cfg: DictConfig, checkpoint: Path, overridden: Callable[[str], list[str]]) -> Inherited:
    """Set what `cfg.inherit` names to what the parent's run had, and say from where. What was typed stays."""
    lineage = read_lineage(checkpoint) if (checkpoint / "lineage.json").is_file() else {}
    config = lineage.get("config") or {}
    source = f"{config.get('run_name', checkpoint.name)}, {checkpoint.name}"
    found: Inherited = []
    for key in cfg.inherit:
        words, group = overridden(key), key.partition(".")[0]
        # what was typed for the setting itself, or a choice of the group that it is a part of
        chosen = [
            word
            for word in overridden(group)
            if word.partition("=")[0] in (key, group if OmegaConf.is_dict(OmegaConf.select(cfg, key)) else key)
        ]
        if chosen:
            found.append((key, chosen[0].partition("=")[2], "typed"))
            continue
        value, where = _of_parent(key, lineage, config), source
        if value is None and not config and key in FALLBACKS:
            value, where = FALLBACKS[key], "nanochat's default: the checkpoint does not say"
        if value is None:
            continue
        kept = {word.partition("=")[0]: OmegaConf.select(cfg, word.partition("=")[0]) for word in words}
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        for name, typed in kept.items():
            OmegaConf.update(cfg, name, typed)
        found += [(name, text, where) for name, text in _lines(key, value) if name not in kept]
        found += [(name, f"{typed}", "typed") for name, typed in kept.items()]
    return found


def _of_parent(key: str, lineage: dict[str, Any], config: dict[str, Any]) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None and key in RECORDED:
        value = lineage
        for part in RECORDED[key]:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _lines(key: str, value: Any) -> list[tuple[str, str]]:
    """One line for a number; for optimizer groups one for each rate."""
    if isinstance(value, dict):
        return [
            (f"{key}.{role}.lr", f"{group['lr']:g} ({group['rule']})") for role, group in value.items() if "lr" in group
        ]
    return [(key, f"{value:,}" if isinstance(value, int) else str(value))]
