"""What a run takes from the checkpoint it starts from: its sizes always, and the settings its phase
says it inherits.

What was typed wins, or is refused where it cannot: a checkpoint has one architecture and one
tokenizer.
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nanochat.checkpoint import folder, imported
from nanochat.gpt import from_depth

# settings that the parent's record has under another name than its config, where `auto` became a
# number
RECORDED = {"batch_tokens": ("plan", "batch_tokens")}
# from: facts sheet 5.5, for a checkpoint that does not say
FALLBACKS = {"batch_tokens": 2**19, "data.rows_per_device": 32}

CHOSEN = "chosen for this run"

Inherited = list[tuple[str, str, str]]  # setting, value, source


def take_sizes(cfg: DictConfig, checkpoint: Path, overridden: Callable[[str], list[str]]) -> None:
    """The checkpoint that a run starts from decides its model, and whatever follows from it; what
    was typed must agree."""
    parent = folder.read_config(checkpoint)
    if words := overridden("arch") + overridden("tokenizer"):
        raise ValueError(
            f"{words[0]} cannot take effect: init_from={cfg.init_from} brings its own architecture "
            "and tokenizer; drop one of the two"
        )
    words = overridden("model")
    sizes = {
        k: getattr(parent, k) for k in ("n_layer", "n_head", "n_kv_head", "n_embd", "sequence_len")
    }
    if words:
        model = {k: v for k, v in cfg.model.items() if k != "depth"}
        typed = from_depth(cfg.model.depth, vocab_size=parent.vocab_size, arch=parent.arch, **model)
        compared = set(sizes) - (set() if overridden("model.sequence_len") else {"sequence_len"})
        if wrong := [k for k in sorted(compared) if getattr(typed, k) != sizes[k]]:
            raise ValueError(
                f"{words[0]} cannot take effect: it means {wrong[0]}={getattr(typed, wrong[0])}, "
                f"and init_from={cfg.init_from} has "
                f"{wrong[0]}={sizes[wrong[0]]}; drop one of the two"
            )
    OmegaConf.update(cfg, "model", {"depth": parent.n_layer, **sizes})
    cfg.arch = asdict(parent.arch)


def inherit(
    cfg: DictConfig, checkpoint: Path, typed: Callable[[str], list[str]], plain: DictConfig
) -> Inherited:
    """Set what `cfg.inherit` names to what the parent's run had, and say from where.

    What was chosen for this run stays: typed, or in `cfg` another value than in `plain`, the
    command's configuration with nothing chosen.
    """
    lineage = folder.read_lineage(checkpoint) if (checkpoint / "lineage.json").is_file() else {}
    config = lineage.get("config") or {}
    source = f"{config.get('run_name', checkpoint.name)}, {checkpoint.name}"
    found: Inherited = []
    for key in dict.fromkeys([*cfg.inherit, *lineage.get("inherit", [])]):
        value, where = _of_parent(key, lineage, config), source
        if value is None and not config and key in FALLBACKS:
            value, where = FALLBACKS[key], "nanochat's default: the checkpoint does not say"
        if value is None:
            continue
        whole_group = [
            word
            for word in typed(key.partition(".")[0])
            if word.partition("=")[0] == key.partition(".")[0]
        ]
        # a group of settings (the rule and rates of a role) is taken as one, but for what was
        # chosen in it
        parts = (
            {f"{key}.{role}": group for role, group in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
        for name, given in parts.items():
            mine, default = OmegaConf.select(cfg, name), OmegaConf.select(plain, name)
            if not isinstance(given, dict):
                chosen = bool(typed(name)) or mine != default
                if not chosen:
                    OmegaConf.update(cfg, name, given)
                found.append((name, _text(mine if chosen else given), CHOSEN if chosen else where))
                continue
            own = {
                k: v
                for k, v in (mine or {}).items()
                if typed(f"{name}.{k}") or v != (default or {}).get(k)
            }
            if whole_group or "rule" in own:
                found.append((f"{name}.lr", f"{mine.lr:g} ({mine.rule})", CHOSEN))
                continue
            OmegaConf.update(cfg, name, {**given, **own}, merge=False, force_add=True)
            lr = own.get("lr", given["lr"])
            found.append(
                (f"{name}.lr", f"{lr:g} ({given['rule']})", CHOSEN if "lr" in own else where)
            )
    return found


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _of_parent(key: str, lineage: dict[str, Any], config: dict[str, Any]) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None and key in RECORDED:
        value = lineage
        for part in RECORDED[key]:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def check_init_optimizer(wanted: bool | str, checkpoint: Path | None) -> None:
    """ValueError if `init_optimizer=true` asks for what the checkpoint does not have."""
    if wanted is True and checkpoint is None:
        raise ValueError(
            "init_optimizer=true takes the optimizer of a checkpoint; add init_from=RUN@latest, or "
            "drop it"
        )
    if wanted is True and checkpoint is not None and not (checkpoint / folder.STATE).is_file():
        try:
            imported.optimizer_state(checkpoint, "meta")
        except ValueError as error:
            raise ValueError(f"{error}; drop init_optimizer=true, or choose auto") from error


def moments(wanted: bool | str, checkpoint: Path | None) -> dict[str, Any] | None:
    """The state of the parent's optimizer, if this run is to begin with it (`init_optimizer`)."""
    if not wanted or checkpoint is None:
        return None
    if (checkpoint / folder.STATE).is_file():
        return folder.read_state(checkpoint, by_rows=True)["optimizer_states"][0]
    try:
        return imported.optimizer_state(checkpoint)
    except ValueError as error:
        if wanted is True:
            raise
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"optimizer: fresh, {error}")
        return None
