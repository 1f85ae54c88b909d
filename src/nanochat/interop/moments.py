"""The optimizer state of a checkpoint of the original, in a form from which ours can start (facts
sheet 2.1, 2.2 and 5.4).

Every process wrote a shard, `optim_021400_rank0.pt` and so on, without names: which moment belongs
to which parameter follows from the order of the original's groups. Until January 2026 a shard is a
list of two states, AdamW's and Muon's; later it is one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig

# what AdamW updates, in the order of the original's groups
ADAMW = (
    "lm_head.",
    "transformer.wte.",
    "value_embeds.",
    "bigram_embed.",
    "resid_lambdas",
    "x0_lambdas",
    "bigram_lambdas",
    "smear_gate.",
    "smear_lambda",
    "backout_lambda",
)
MATRICES = "transformer.h."
States = list[dict[str, Any]]  # states of a group's parameters; empty where a process holds none


def read(folder: Path, step: int, config: GPTConfig, device: str = "cpu") -> dict[str, Any]:
    """The merged shards of a step, in the format of `optim.load_moments`. On the device `meta` only
    shapes are checked. ValueError with the reason if they cannot be used.
    """
    files = sorted(
        folder.glob(f"optim_{step:06d}*.pt"), key=lambda path: (len(path.name), path.name)
    )
    if not files:
        raise ValueError(f"{folder} has no optim_{step:06d}_rank0.pt, the state of its optimizer")
    shards = [_groups(file, device) for file in files]
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    where = f"{folder}/optim_{step:06d}_rank*.pt"
    try:
        adamw = [_join(group) for group in zip(*(shard[0] for shard in shards), strict=True)]
        muon = list(zip(*(shard[1] for shard in shards), strict=True))
        named, classic = _adamw(adamw, shapes), True
        matrices: dict[str, dict[str, Any]] = {}
        for parts in muon:
            found = _muon(parts, shapes)
            matrices.update(found)
            classic = classic and not any(
                "second_momentum_buffer" in state for state in found.values()
            )
        if missing := [name for name in shapes if name not in named and name not in matrices]:
            raise ValueError(f"they hold nothing for {missing[0]}")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{where} are not an optimizer state of nanochat: {type(error).__name__}: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    kinds = (("adamw", None, named), ("muon", "classic" if classic else "modern", matrices))
    state: dict[int, dict[str, Any]] = {}
    groups = []
    for rule, variant, states in kinds:
        indices = range(len(state), len(state) + len(states))
        state.update(zip(indices, states.values(), strict=True))
        groups.append(
            {"rule": rule, "variant": variant, "names": list(states), "params": list(indices)}
        )
    return {"state": state, "param_groups": groups}


def _groups(file: Path, device: str) -> tuple[list[States], list[States]]:
    """AdamW's and Muon's groups of one shard. Nothing in the file is executed."""
    try:
        found = torch.load(file, map_location=device, weights_only=True, mmap=True)
        adamw: list[States] = []
        muon: list[States] = []
        for state, kind in (
            ((found, None),)
            if isinstance(found, dict)
            else zip(found, ("adamw", "muon"), strict=True)
        ):
            for group in state["param_groups"]:
                states = [state["state"].get(index, {}) for index in group["params"]]
                (adamw if (kind or group["kind"]) == "adamw" else muon).append(states)
        return adamw, muon
    except Exception as error:  # torch raises many exception types for unknown files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file} cannot be read as the state of an optimizer: {reason}") from error


def _join(parts: tuple[States, ...]) -> list[list[dict[str, Any]]]:
    """A group's states by parameter, each with the part of every process."""
    return [list(states) for states in zip(*parts, strict=True)]


def _adamw(
    groups: list[list[list[dict[str, Any]]]], shapes: dict[str, tuple[int, ...]]
) -> dict[str, dict[str, Any]]:
    names = [name for start in ADAMW for name in shapes if name.startswith(start)]
    states = [parts for group in groups for parts in group]
    if len(names) != len(states):
        raise ValueError(
            f"AdamW's moments are those of {len(states)} tensors, and the model has {len(names)}"
        )
    result = {}
    for name, parts in zip(names, states, strict=True):
        step = parts[0]["step"]
        result[name] = {
            "step": 0 if isinstance(step, Tensor) and step.is_meta else int(step),
            **{
                key: _whole(name, [part[key] for part in parts], shapes[name])
                for key in ("exp_avg", "exp_avg_sq")
            },
        }
    return result


def _whole(name: str, parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Small tensors are equal in every process; of large ones each process has a slice of the
    rows."""
    whole = parts[0] if tuple(parts[0].shape) == shape else torch.cat(parts)
    if tuple(whole.shape) != shape:
        rows = parts[0].size(0)
        missing = tuple(parts[0].shape[1:]) == shape[1:] and shape[0] % parts[0].size(0) == 0
        why = f"; they are {len(parts)} of {shape[0] // rows} shards: copy all" if missing else ""
        raise ValueError(
            f"{name} has moments of shape {tuple(whole.shape)}, the model wants {shape}{why}"
        )
    return whole.float()


def _muon(
    parts: tuple[States, ...], shapes: dict[str, tuple[int, ...]]
) -> dict[str, dict[str, Any]]:
    """A group of matrices: stacked, with a share in every process, or in the classic generation one
    by one at their owners."""
    count = len(parts[0])
    owned = next(state for states in parts for state in states if state)["momentum_buffer"]
    stacked = owned.ndim == 3
    shape = tuple(owned.shape[-2:])
    names = [name for name in shapes if name.startswith(MATRICES) and shapes[name] == shape]
    # the classic optimizer of one process groups by the number of elements
    if not stacked and len(names) != count:
        names = [
            name
            for name, s in shapes.items()
            if name.startswith(MATRICES) and s[0] * s[1] == shape[0] * shape[1]
        ]
    if len(names) != count:
        raise ValueError(
            f"Muon's moments are those of {count} matrices of shape {shape}, and the model has "
            f"{len(names)}"
        )
    if stacked:
        whole = {
            key: torch.cat([states[0][key] for states in parts if states[0]]) for key in parts[0][0]
        }
        if short := [key for key, tensor in whole.items() if tensor.size(0) < count]:
            raise ValueError(
                f"{short[0]} of {names[0]} is that of {whole[short[0]].size(0)} of {count} "
                "matrices: copy all shards"
            )
        result = {
            name: {key: tensor[k].float() for key, tensor in whole.items()}
            for k, name in enumerate(names)
        }
    else:
        owners = [
            next((state for state in states if state), None) for states in zip(*parts, strict=True)
        ]
        if None in owners:
            raise ValueError(f"nothing for {names[owners.index(None)]}: copy all shards")
        result = {
            name: {key: tensor.float() for key, tensor in state.items()}
            for name, state in zip(names, owners, strict=True)
            if state
        }
    for name, state in result.items():
        if tuple(state["momentum_buffer"].shape) != shapes[name]:
            raise ValueError(
                f"{name} has a momentum of shape {tuple(state['momentum_buffer'].shape)}, the "
                f"model wants {shapes[name]}"
            )
    return result
