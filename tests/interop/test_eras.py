"""Every era's maths beside the original's own code at a commit of that era
(`experiments/parity/golden_eras.py`)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from original_files import KEPT, fixed_ids, network

from nanochat.interop.eras import ERAS, arch_of, candidates, preset

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "original_eras.npz")


@pytest.mark.parametrize("era", ERAS)
def test_logits_are_those_of_the_original(era: str) -> None:
    with torch.no_grad():
        logits = network(era)(fixed_ids())[0, -KEPT:].numpy()
    # one bfloat16 unit in the last place of a RoPE table moves logits by 1e-3; what is left is the
    # order of fp32 sums
    assert np.abs(logits - GOLDEN[era]).max() < 2e-5


@pytest.mark.parametrize("era", ERAS)
def test_another_era_gives_other_logits(era: str) -> None:
    """So the comparison above can fail for each."""
    others = [np.abs(GOLDEN[era] - GOLDEN[other]).max() for other in ERAS if other != era]
    assert min(others) > 1e-2


@pytest.mark.parametrize("era", ERAS)
def test_the_tensors_tell_the_era(era: str) -> None:
    shapes = {name: tuple(p.shape) for name, p in network(era).state_dict().items()}
    expected = ("e2", "e4") if era in ("e2", "e4") else (era,)
    assert candidates(shapes) == expected
    assert arch_of(shapes, "SSL", preset(era)).name == era


def test_a_file_without_a_pattern_sees_the_whole_context() -> None:
    shapes = {name: tuple(p.shape) for name, p in network("modern").state_dict().items()}
    assert (
        arch_of(shapes, None).window_pattern == "L" and arch_of(shapes, "sl").window_pattern == "SL"
    )


def test_two_eras_that_look_alike_are_asked_for() -> None:
    shapes = {name: tuple(p.shape) for name, p in network("e2").state_dict().items()}
    with pytest.raises(ValueError, match=r"softcap.*arch=e2\) or 20.*arch=e4"):
        arch_of(shapes, "SSL")
    with pytest.raises(
        ValueError, match="arch=modern does not fit: these are the tensors of e2 or e4"
    ):
        arch_of(shapes, "SSL", preset("modern"))
