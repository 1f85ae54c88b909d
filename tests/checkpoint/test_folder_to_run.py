"""A checkpoint read to be run gives the numbers of one read to be trained, in the memory of its
weights."""

import pytest
import torch
from omegaconf import OmegaConf

from nanochat.checkpoint import folder
from nanochat.gpt import GPT, Arch, GPTConfig, build_arch
from nanochat.inference.frozen import packs
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.runtime.paths import conf_dir
from nanochat.tokenizer.tokenizer import BPETokenizer

CLASSIC = build_arch(OmegaConf.to_container(OmegaConf.load(conf_dir() / "arch" / "classic.yaml")))


@pytest.fixture(params=["modern", "classic"])
def saved(request, tmp_path):
    tokenizer = BPETokenizer([])
    arch = Arch() if request.param == "modern" else CLASSIC
    gpt = GPT.build(GPTConfig(64, tokenizer.vocab_size, 2, 4, 2, 64, arch=arch))
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.2, generator=drawn)
    folder.save(tmp_path / "c", gpt.state_dict(), gpt.config, tokenizer, lineage={})
    return tmp_path / "c"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_read_to_be_run_gives_the_same_logits(saved, dtype):
    trained = folder.load_gpt(saved, compute_dtype=dtype)
    runs = folder.load_to_run(saved, compute_dtype=dtype)
    idx = torch.arange(40)[None] % 50
    with torch.no_grad():
        assert torch.equal(FrozenGPT.of(trained)(idx), runs(idx))
        assert FrozenGPT.of(runs) is runs
        torch.testing.assert_close(
            runs(idx), trained(idx).detach(), rtol=0, atol=1e-4 if dtype == torch.float32 else 0.2
        )
    for name, p in trained.named_parameters():
        value = runs.value(name)
        assert value.dtype == dtype and torch.equal(value, p.to(dtype)) and not value.requires_grad


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_holds_is_each_weight_once_in_the_compute_dtype(saved, dtype, by_rows, monkeypatch):
    monkeypatch.setattr(
        "nanochat.inference.frozen.PACKING_PAYS", dict.fromkeys((torch.float32, torch.bfloat16), 1)
    )
    runs = folder.load_to_run(saved, compute_dtype=dtype)
    before = {name: runs.value(name).clone() for name in folder.read_weights(saved)}
    if by_rows:
        runs.unpack()
    frozen = [layer.frozen.weight for _, layer in runs._layers()]
    packed = [weight for weight in frozen if weight.is_mkldnn]
    assert len(packed) == (len(frozen) if packs(runs.device, dtype) and not by_rows else 0)
    held = [t for t in [*runs.parameters(), *frozen] if not t.is_mkldnn]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    total = sum(storages.values()) + sum(weight.numel() * dtype.itemsize for weight in packed)
    assert total == dtype.itemsize * sum(value.numel() for value in before.values())
    assert all(torch.equal(runs.value(name), value) for name, value in before.items())
    with pytest.raises(RuntimeError, match="only runs"):
        runs.state_dict()


def test_losses_of_one_that_only_runs_are_those_of_one_that_trains(saved):
    trained, runs = folder.load_gpt(saved), folder.load_to_run(saved)
    idx, targets = torch.arange(120).view(3, 40) % 50, torch.arange(1, 121).view(3, 40) % 50
    targets[1, :7] = -1
    with torch.no_grad():
        torch.testing.assert_close(
            runs.losses(idx, targets), trained.losses(idx, targets), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            runs.loss_sum(idx, targets), trained.loss_sum(idx, targets), rtol=1e-5, atol=0
        )


def test_weights_that_do_not_fit_the_config_are_named(saved, monkeypatch):
    monkeypatch.setenv("NANOCHAT_CHECK_HASHES", "false")
    (saved / "config.json").write_text(
        (saved / "config.json").read_text().replace('"n_layer": 2', '"n_layer": 3')
    )
    sizes = (saved / "files.json").read_text()
    assert '"config.json"' in sizes  # the size is the same
    with pytest.raises(ValueError, match=r"does not fit its config\.json"):
        folder.load_to_run(saved)
