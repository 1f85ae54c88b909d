"""Which era's forward pass a checkpoint of the original needs; the file does not record it (facts
sheet 0). Between October 2025 and July 2026 the computation changed six times under the same tensor
names. Tensor names and one shape identify the era, except for E2 and E4, which differ only in the
softcap: there the user has to choose.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from nanochat.gpt import Arch
from nanochat.gpt.config import build_arch
from nanochat.runtime.paths import conf_dir

ERAS = ("classic", "e1", "e2", "e3", "e4", "e5", "modern")  # E0 … E6; each is a file of conf/arch
E2_GATE_CHANNELS = 32  # from: facts sheet 0; 12 from E5 on


def preset(name: str) -> dict[str, Any]:
    """The switches of `conf/arch/{name}.yaml`, with its defaults merged in."""
    values = yaml.safe_load((conf_dir() / "arch" / f"{name}.yaml").read_text(encoding="utf-8"))
    base = values.pop("defaults", [None])[0]
    return {**preset(base), **values} if base else values


def candidates(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """The eras with tensors of these names and shapes: one, or two that cannot be distinguished."""
    gate = next(
        (shape for name, shape in shapes.items() if name.endswith("attn.ve_gate.weight")), None
    )
    if "smear_gate.weight" in shapes:
        return ("modern",)
    if gate is not None and gate[-1] != E2_GATE_CHANNELS:
        return ("e5",)
    if "bigram_lambdas" in shapes:
        return ("e3",)
    if gate is not None:
        return ("e2", "e4")
    return ("e1",) if "resid_lambdas" in shapes else ("classic",)


def arch_of(
    shapes: Mapping[str, tuple[int, ...]],
    window_pattern: str | None,
    chosen: Mapping[str, Any] | None = None,
) -> Arch:
    """The architecture of a checkpoint with these tensors.

    `window_pattern` is the one in its meta file; None means that every layer sees the whole
    context. `chosen` are the switches of an era, which must be a candidate for these tensors.
    ValueError if two are possible and none was chosen.
    """
    possible = candidates(shapes)
    if chosen is not None and chosen["name"] not in possible:
        raise ValueError(
            f"arch={chosen['name']} does not fit: these are the tensors of "
            f"{' or '.join(possible)}; drop arch="
        )
    if chosen is None and len(possible) > 1:
        raise ValueError(
            "the file does not say which softcap it was trained with: 15 (17 January to 2 March "
            "2026, arch=e2) or 20 (2 to 9 March 2026, arch=e4); convert it with python -m "
            "nanochat.import src=… out=DIR arch=e2 (or e4)"
        )
    switches = dict(chosen or preset(possible[0]))
    if switches["name"] != "classic":
        switches["window_pattern"] = window_pattern or "L"
    arch = build_arch(switches)
    assert isinstance(arch, Arch)
    return arch
