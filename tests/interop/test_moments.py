"""Optimizer files that the original's own code wrote (`experiments/parity/golden_moments.py`),
taken for a warm start."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanochat import optim
from nanochat.checkpoint import folder
from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, GPTConfig, build_arch
from nanochat.interop import moments
from nanochat.interop.eras import preset
from nanochat.runs import parent
from nanochat.tokenizer.tokenizer import BPETokenizer

GOLDEN, STEP = Path(__file__).parents[1] / "golden", 2
ERAS = ("classic", "modern")


def config(era: str, **sizes: int) -> GPTConfig:
    expected = json.loads((GOLDEN / f"moments_{era}" / "expected.json").read_text())
    return GPTConfig(**{**expected["sizes"], **sizes}, arch=build_arch(preset(era)))


def states(saved: dict) -> dict[str, dict]:
    return {
        name: saved["state"][index]
        for group in saved["param_groups"]
        for name, index in zip(group["names"], group["params"], strict=True)
    }


def shards(era: str, place: Path) -> list[Path]:
    """The golden file cut as two processes of the original would have written it (facts sheet 2.1,
    2.2)."""
    whole = torch.load(GOLDEN / f"moments_{era}" / "optim_000002_rank0.pt", weights_only=True)
    files = []
    for rank in range(2):
        made: list[dict] = []
        for part in whole if isinstance(whole, list) else [whole]:
            state = {}
            for group in part["param_groups"]:
                for k, index in enumerate(group["params"]):
                    old = part["state"].get(index)
                    if old is None:
                        continue
                    if "exp_avg" in old:
                        sliced = old["exp_avg"].numel() >= 1024
                        state[index] = {
                            key: v.chunk(2)[rank] if sliced and torch.is_tensor(v) and v.ndim else v
                            for key, v in old.items()
                        }
                    elif old["momentum_buffer"].ndim == 3:
                        share = -(-len(group["params"]) // 2)
                        padded = {
                            key: torch.cat((v, v.new_zeros(2 * share - len(v), *v.shape[1:])))
                            for key, v in old.items()
                        }
                        state[index] = {
                            key: v[rank * share : (rank + 1) * share] for key, v in padded.items()
                        }
                    elif k % 2 == rank:
                        state[index] = old
            made.append({"state": state, "param_groups": part["param_groups"]})
        files.append(place / f"optim_000002_rank{rank}.pt")
        torch.save(made if isinstance(whole, list) else made[0], files[-1])
    return files


@pytest.mark.parametrize("era", ERAS)
def test_every_moment_is_that_of_its_parameter(era):
    found = states(moments.read(GOLDEN / f"moments_{era}", STEP, config(era)))
    expected = json.loads((GOLDEN / f"moments_{era}" / "expected.json").read_text())["sums"]
    assert found.keys() == expected.keys()
    for name, sums in expected.items():
        assert {
            key: float(v.double().sum()) for key, v in found[name].items() if key != "step"
        } == pytest.approx(sums)
        assert found[name].get("step", STEP) == STEP
    gpt = GPT.build(config(era))
    groups = compose_choice("optim", f"muon{'_classic' * (era == 'classic')}")["groups"]
    saved = moments.read(GOLDEN / f"moments_{era}", STEP, gpt.config)
    assert optim.load_moments(optim.build(gpt, groups, weight_decay=0.0), saved) == len(expected)


@pytest.mark.parametrize("era", ERAS)
def test_shards_of_two_processes_are_put_together(era, tmp_path):
    whole = states(moments.read(GOLDEN / f"moments_{era}", STEP, config(era)))
    _, second = shards(era, tmp_path)
    merged = states(moments.read(tmp_path, STEP, config(era)))
    assert merged.keys() == whole.keys()
    for name, state in whole.items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(merged[name][key]))
            for key, v in state.items()
        ), name
    second.unlink()
    for device in ("cpu", "meta"):
        with pytest.raises(ValueError, match=r"they are 1 of 2 shards: copy all"):
            moments.read(tmp_path, STEP, config(era), device)


def test_what_does_not_fit_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"has no optim_000002_rank0\.pt"):
        moments.read(tmp_path, STEP, config("modern"))
    with pytest.raises(
        ValueError,
        match=r"lm_head\.weight has moments of shape \(64, 24\), the model wants \(64, 48\)$",
    ):
        moments.read(GOLDEN / "moments_modern", STEP, config("modern", n_embd=48))
    with pytest.raises(
        ValueError, match="AdamW's moments are those of 2 tensors, and the model has 8"
    ):
        moments.read(GOLDEN / "moments_classic", STEP, config("modern"))
    with pytest.raises(ValueError, match="Muon's moments are those of 8 matrices"):
        moments.read(GOLDEN / "moments_classic", STEP, config("classic", n_layer=3))
    (tmp_path / "optim_000002_rank0.pt").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="cannot be read as the state of an optimizer"):
        moments.read(tmp_path, STEP, config("modern"))


def test_a_run_begins_with_them_or_says_why_not(tmp_path, capsys):
    source, gpt = tmp_path / "original", GPT.build(config("modern"))
    source.mkdir()
    shutil.copy(GOLDEN / "moments_modern" / "optim_000002_rank0.pt", source)
    lineage = {"imported": {"from": str(source / "model_000002.pt")}, "config": {}}
    folder.save(tmp_path / "imported", gpt.state_dict(), gpt.config, BPETokenizer([]), lineage)

    run = tmp_path / "imported"
    parent.check_init_optimizer(True, run)
    for wanted in (True, "auto"):
        assert len(states(parent.moments(wanted, run))) == len(gpt.parameter_roles())
    assert parent.moments(False, run) is None
    (source / "optim_000002_rank0.pt").unlink()
    assert parent.moments("auto", run) is None
    assert f"optimizer: fresh, {source} has no optim_000002_rank0.pt" in capsys.readouterr().out
    with pytest.raises(
        ValueError,
        match=r"has no optim_000002_rank0\.pt, .*; drop init_optimizer=true, or choose auto",
    ):
        parent.check_init_optimizer(True, run)
