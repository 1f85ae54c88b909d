"""The files of an export, without the programs that load them: nothing is dropped,
and a change is seen."""

import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import tiktoken
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from nanochat.checkpoint import folder
from nanochat.checkpoint.certificate import (
    CERTIFICATE,
    colour_of,
    require_not_red,
    write_certificate,
)
from nanochat.checkpoint.runs import resolve
from nanochat.export.archive import pack
from nanochat.export.card import Score, scores_of, write_card
from nanochat.export.huggingface import reader, tensor_names, write_folder, write_weights
from nanochat.export.original import encoding_pickle, era_of, write_original
from nanochat.gpt import build_arch
from nanochat.interop.eras import ERAS, preset
from nanochat.interop.hf_names import hf_name, rows_of_vocabulary, stock_lacks
from nanochat.interop.original import find
from nanochat.tokenizer.tokenizer import CharTokenizer


def export(checkpoint: Path, out: Path) -> Path:
    out.mkdir()
    config, tokenizer = folder.read_config(checkpoint), folder.load_tokenizer(checkpoint)
    own, phase = bool(stock_lacks(config)), folder.phase(checkpoint)
    write_folder(out, checkpoint, config, tokenizer, phase=phase, own=own)
    write_certificate(out, {"verdict": "green", "why": "", "source": {"phase": phase}})
    return out


@pytest.mark.parametrize("arch", ERAS)
def test_every_tensor_is_in_the_export_bit_for_bit(make, arch: str, tmp_path: Path) -> None:
    checkpoint = make(arch)
    weights = load_file(checkpoint / "model.safetensors")
    found = load_file(export(checkpoint, tmp_path / "hf") / "model.safetensors")
    assert len(found) == len(weights)
    V = folder.read_config(checkpoint).vocab_size
    for name, tensor in weights.items():
        kept = tensor[:V] if rows_of_vocabulary(name) else tensor
        assert torch.equal(found[hf_name(name)], kept), name


def test_a_tensor_without_a_place_is_an_error_that_names_it(make, tmp_path: Path) -> None:
    config = folder.read_config(make())
    weights = load_file(make() / "model.safetensors")
    for name, side in (("more.weight", "has no place for"), ("smear_lambda", "lacks")):
        changed = {**weights, name: torch.zeros(1)}
        if side == "lacks":
            del changed[name]
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=f"the model {side} {name}"):
            tensor_names(tmp_path / "w.safetensors", config)


def test_weights_are_cut_into_files_as_transformers_finds_them(make, tmp_path: Path) -> None:
    file, config = make() / "model.safetensors", folder.read_config(make())
    names, read = tensor_names(file, config), reader(file, config, None)
    write_weights(tmp_path, names, read, shard_bytes=300_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name in names:
        with safe_open(tmp_path / index["weight_map"][hf_name(name)], framework="pt") as shard:
            assert torch.equal(shard.get_tensor(hf_name(name)), read(name))


def test_one_flipped_bit_turns_the_certificate_red(make, tmp_path: Path) -> None:
    out = export(make(), tmp_path / "hf")
    assert colour_of(out).colour == "green"
    require_not_red(out)
    (out / "README.md").write_text("may be edited")
    assert colour_of(out).colour == "green"
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-5] ^= 4
    (out / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        ValueError, match=r"is red: .*model.safetensors is not the file.*force=true"
    ):
        resolve(str(out), tmp_path)
    require_not_red(out, force=True)
    weights[-5] ^= 4
    (out / "model.safetensors").write_bytes(weights)
    assert colour_of(out).colour == "green"
    (out / "modeling_other.py").touch()
    assert "not of this export" in colour_of(out).why
    (out / "modeling_other.py").unlink()
    certificate = json.loads((out / CERTIFICATE).read_text())
    certificate["why"] = "because I say so"
    (out / CERTIFICATE).write_text(json.dumps(certificate))
    assert "damaged" in colour_of(out).why


@pytest.mark.parametrize("arch", ["classic", "e3", "modern"])
@torch.no_grad()
def test_an_export_is_read_back_as_a_checkpoint(
    make, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    path = resolve(str(export(make(arch), tmp_path / "hf")), tmp_path)
    ids = torch.arange(40)[None]
    assert torch.equal(folder.load_gpt(path)(ids), folder.load_gpt(make(arch))(ids))
    tokenizer = folder.load_tokenizer(path)
    assert tokenizer.hash == folder.load_tokenizer(make(arch)).hash
    assert folder.phase(path) == "sft"


@pytest.mark.parametrize("era", ["classic", "e1", "e5", "modern"])
def test_the_originals_files_are_read_back_the_same(make, era: str, tmp_path: Path) -> None:
    checkpoint, out = make(era, "base"), tmp_path / "there"
    out.mkdir()
    config, tokenizer = folder.read_config(checkpoint), folder.load_tokenizer(checkpoint)
    written = write_original(out, checkpoint, config, tokenizer, {"step": 7}, {}, "base")
    assert written == ("base", "d3", 7, era)
    found = find(str(out))
    assert found is not None and found.phase == "base"
    weights = torch.load(found.model_file, weights_only=True)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        assert torch.equal(weights[name], tensor)


def test_the_tokenizer_file_is_what_tiktoken_pickles(tokenizer) -> None:
    theirs = pickle.loads(encoding_pickle(tokenizer))
    assert type(theirs) is tiktoken.Encoding
    text = "What is 2+2? <|bos|> naïve\n\n 12345"
    assert theirs.encode_ordinary(text) == tokenizer.encode(text)
    assert theirs.encode_single_token("<|output_end|>") == tokenizer.specials["<|output_end|>"]


def test_what_the_original_cannot_compute_is_refused(make, tmp_path: Path) -> None:
    arch = build_arch({**preset("modern"), "qk_scale": 1.3, "window_pattern": "L"})
    with pytest.raises(
        ValueError, match=r"of modern, the nearest, it differs in arch.qk_scale=1.3"
    ):
        era_of(arch)
    chars = CharTokenizer("abc")
    with pytest.raises(ValueError, match="kind char"):
        write_original(tmp_path, make(), folder.read_config(make()), chars, {}, {}, "sft")


def test_scores_are_on_the_card_and_in_the_hubs_files(make, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step_000001"
    shutil.copytree(make(), checkpoint)
    (checkpoint / "metrics.json").write_text('{"val/bpb": 0.9, "val/gsm8k_accuracy": 0.25}')
    scores = scores_of(checkpoint)
    assert Score("gsm8k", "accuracy", 0.25, "openai/gsm8k", "main", "test") in scores
    config, certificate = folder.read_config(checkpoint), {"verdict": "green", "why": "w"}
    lineage = {"config": {"run_name": "tiny"}}
    given = {"phase": "sft", "own": True, "step": 1}
    certificate["unsupported"] = ["smear"]
    write_card(tmp_path, config, lineage, scores, certificate, **given)
    import yaml
    from huggingface_hub import ModelCard, parse_eval_result_entries

    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [(r.dataset_name, r.metric_value) for r in results] == [
        ("validation text", 0.9),
        ("gsm8k", 0.25),
    ]
    (file,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "main", 25.0)


def test_a_killed_archive_is_continued(make, tmp_path: Path) -> None:
    checkpoints = []
    for arch in ("classic", "modern"):
        checkpoints.append(tmp_path / "runs" / arch / "t" / "checkpoints" / "step_000007")
        shutil.copytree(make(arch), checkpoints[-1])
        (checkpoints[-1] / "trainer").mkdir()
        (checkpoints[-1] / "trainer" / "state.pt").write_bytes(b"x" * 999)
        (tmp_path / "runs" / arch / "t" / "metrics.csv").write_text("step\n")
    out = tmp_path / "home"
    assert pack(checkpoints[:1], out) == {"classic_t_step_000007.tar": True}
    (out / ".modern_t_step_000007.tar.part").write_bytes(b"half")  # as a kill leaves it
    assert list(pack(checkpoints, out).values()) == [False, True]
    lines = (out / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 2 and not list(out.glob(".*.part"))
    whole = out / "modern_t_step_000007.tar"
    with tarfile.open(whole) as tar:
        names = tar.getnames()
    shutil.unpack_archive(whole, tmp_path / "there")
    top = "modern_t_step_000007"
    assert f"{top}/run/metrics.csv" in names and not any("trainer" in name for name in names)
    assert folder.problem(tmp_path / "there" / top / "checkpoint") is None
    whole.write_bytes(whole.read_bytes()[:-7])  # damaged on the disk: packed again
    assert list(pack(checkpoints, out).values()) == [False, True]


@torch.no_grad()
def test_transformers_own_type_is_read_whoever_wrote_it(
    make, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this project's keys, and with a tokenizer that is built otherwise."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    source, out = make("classic"), export(make("classic"), tmp_path / "hf")
    (out / CERTIFICATE).unlink()
    file = out / "config.json"
    settings = json.loads(file.read_text())
    del settings["nanochat_config"]
    file.write_text(json.dumps(settings))
    content = json.loads(tokenizer.to_json())
    apart = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"]["pretokenizers"].insert(0, apart)
    (out / "tokenizer.json").write_text(json.dumps(content))
    path = resolve(f"hf:{out}", tmp_path)
    ids = torch.arange(40)[None]
    assert torch.equal(folder.load_gpt(path)(ids), folder.load_gpt(source)(ids))
    own = folder.load_tokenizer(path)
    assert own.specials == tokenizer.specials and own.vocab_size == tokenizer.vocab_size
    assert own.encode("the rivers") != tokenizer.encode("the rivers")
    for name, value in (("hidden_act", "silu"), ("head_dim", 32), ("hidden_size", None)):
        file.write_text(json.dumps({**settings, name: value}))
        with pytest.raises(ValueError, match=f"config.json.*{name}|config.json.*n_embd"):
            resolve(str(out), tmp_path)
