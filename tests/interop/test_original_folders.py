"""What a user types for a checkpoint of the original, and the twenty ways in which its files can be
wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from original_files import SIZES, encoding, fixed_ids, network, write

from nanochat.checkpoint import folder, imported
from nanochat.checkpoint.runs import resolve


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
    return tmp_path / "base"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "original root"


def opened(text: str | Path, base: Path) -> Path:
    return resolve(text, base / "runs")


@pytest.mark.parametrize("era", ["classic", "modern"])
def test_it_loads_like_one_of_ours(era: str, base: Path, root: Path) -> None:
    source = write(
        root, era, prefix="_orig_mod.", total_batch_size=16384, device_batch_size=8, max_seq_len=256
    )
    path = opened(source, base)
    gpt, expected = folder.load_gpt(path), network(era)
    # as the file has it
    expected.transformer.wte.weight.data = expected.transformer.wte.weight.bfloat16().float()
    with torch.no_grad():
        assert torch.equal(gpt(fixed_ids()), expected(fixed_ids()))
    assert gpt.transformer.wte.weight.dtype == torch.float32  # masters
    tokenizer = folder.load_tokenizer(path)
    assert tokenizer.encode("It's 2024") == encoding().encode_ordinary("It's 2024")
    config = folder.read_lineage(path)["config"]
    assert (config["phase"], config["batch_tokens"], config["data"]) == (
        "base",
        16384,
        {"rows_per_device": 8},
    )
    assert opened(source, base) == path  # converted once


@pytest.mark.parametrize(
    "spell",
    [
        lambda root: root,
        lambda root: root / "base_checkpoints",
        lambda root: root / "base_checkpoints" / "d4",
        lambda root: f"{root / 'base_checkpoints' / 'd4'}:10",
        lambda root: f"{root}:000010",
        lambda root: root / "base_checkpoints" / "d4" / "model_000010.pt",
    ],
)
def test_one_checkpoint_under_all_its_names(
    spell: Callable[[Path], str | Path], base: Path, root: Path
) -> None:
    write(root)
    path = opened(spell(root), base)
    assert folder.read_lineage(path)["imported"]["from"].endswith(
        "base_checkpoints/d4/model_000010.pt"
    )


def test_the_originals_base_folder_is_ours(base: Path) -> None:
    """Both are NANOCHAT_BASE_DIR: what the original wrote there is found by the name it has
    there."""
    write(base)
    assert opened("base_checkpoints/d4", base).parent == base / "imported"


def test_a_published_folder_holds_everything(base: Path, root: Path) -> None:
    """As d32 and d34: model, meta file and tokenizer beside each other, and the lengths of the
    tokens as the original counted them."""
    source = write(root, "classic", group="", tag="nanochat-d34", tokenizer=root / "nanochat-d34")
    lengths = torch.arange(SIZES["vocab_size"], dtype=torch.int32)
    torch.save(lengths, source / "token_bytes.pt")
    path = opened(source, base)
    kept = np.load(path / imported.ORIGINAL_BYTES, allow_pickle=False)
    assert np.array_equal(kept, lengths.numpy())


def test_a_model_on_the_hub_by_its_name(
    base: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(
        root / "org",
        "classic",
        group="",
        tag="nanochat-d34",
        tokenizer=root / "org" / "nanochat-d34",
    )
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(root))
    assert source == root / "org" / "nanochat-d34"
    assert (
        opened("org/nanochat-d34", base)
        == opened(source, base)
        == opened("org/nanochat-d34:10", base)
    )
    with pytest.raises(ValueError, match="org/other is not in the mirror"):
        opened("org/other", base)


def test_rows_of_padding_are_added_where_an_old_file_has_none(base: Path, root: Path) -> None:
    source = write(root, "classic")
    file = source / "model_000010.pt"
    weights = torch.load(file)
    old = {
        k: v[: SIZES["vocab_size"]].clone() if v.size(0) == 320 else v for k, v in weights.items()
    }
    torch.save(old, file)
    gpt = folder.load_gpt(opened(source, base))
    assert gpt.lm_head.weight.shape[0] == 320
    assert (
        torch.equal(gpt.lm_head.weight[:265], old["lm_head.weight"])
        and not gpt.lm_head.weight[265:].any()
    )


@pytest.mark.parametrize(
    ("group", "meta", "phase"),
    [
        ("base_checkpoints", {"device_batch_size": 8, "max_seq_len": 256}, "base"),
        ("mid_checkpoints", {"user_config": {}}, "mid"),
        ("chatsft_checkpoints", {"val_loss": 1.0, "mmlu_acc": 0.3}, "sft"),
        ("chatrl_checkpoints", {}, "rl"),
        ("", {"val_loss": 1.0}, "sft"),
        ("", {}, None),
    ],
)
def test_the_phase_is_that_of_the_meta_file(
    group: str, meta: dict, phase: str | None, base: Path, root: Path
) -> None:
    source = write(root, group=group, tokenizer=root / group / "d4", **meta)
    assert folder.phase(opened(source, base)) == phase


def test_a_base_model_among_chat_models_is_named(
    base: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(
        root, "classic", group="chatsft_checkpoints", device_batch_size=4, max_seq_len=256
    )
    assert folder.phase(opened(source, base)) == "base"
    assert "chatsft_checkpoints/d4 holds a base model" in capsys.readouterr().err


def test_two_steps_tags_and_phases_are_listed(base: Path, root: Path) -> None:
    write(root, step=10)
    source = write(root, step=20)
    with pytest.raises(ValueError, match=r"holds 2 steps; choose one of: .*d4:10, .*d4:20"):
        opened(source, base)
    with pytest.raises(ValueError, match=r"has no step 30; choose one of: .*d4:10, .*d4:20"):
        opened(f"{source}:30", base)
    assert opened(f"{source}:20", base)
    with pytest.raises(ValueError, match="²"):  # a digit that int() does not read
        opened(f"{source}:²", base)
    write(root, tag="d6")
    write(root, group="chatrl_checkpoints", tag="d6")
    with pytest.raises(
        ValueError,
        match=(
            r"holds 3 nanochat models; choose one of: .*base_checkpoints/d4, "
            r".*chatrl_checkpoints/d6"
        ),
    ):
        opened(root, base)


def _meta(source: Path, **changes: object) -> None:
    file = source / "meta_000010.json"
    meta = json.loads(file.read_text())
    for key, value in changes.items():
        meta["model_config"].pop(key) if value is None else meta["model_config"].update(
            {key: value}
        )
    file.write_text(json.dumps(meta))


def _weights(source: Path, change: Callable[[dict], None]) -> None:
    file = source / "model_000010.pt"
    weights = torch.load(file)
    change(weights)
    torch.save(weights, file)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


WRONG = {
    "no meta file": (
        lambda s: (s / "meta_000010.json").unlink(),
        "needs meta_000010.json in the same folder",
    ),
    "broken meta file": (
        lambda s: (s / "meta_000010.json").write_text("{"),
        "meta_000010.json cannot be read",
    ),
    "meta of another kind": (
        lambda s: (s / "meta_000010.json").write_text("[1]"),
        "meta_000010.json cannot be read",
    ),
    "no sizes": (lambda s: (s / "meta_000010.json").write_text("{}"), "model_config"),
    "a size missing": (lambda s: _meta(s, n_head=None), "does not give n_head as a number"),
    "a size as text": (lambda s: _meta(s, n_layer="four"), "does not give n_layer as a number"),
    "another depth": (lambda s: _meta(s, n_layer=5), "the model lacks"),
    "another width": (lambda s: _meta(s, n_embd=128), "has the shape .* require"),
    "another vocabulary": (
        lambda s: _meta(s, vocab_size=512),
        "has the shape|265 tokens, the model 512",
    ),
    "vocabulary in the padding": (lambda s: _meta(s, vocab_size=300), "265 tokens, the model 300"),
    "no tokenizer": (lambda s: shutil.rmtree(s.parent.parent / "tokenizer"), "no tokenizer.pkl in"),
    "two tokenizers": (
        lambda s: (s / "tokenizer.pkl").write_bytes(b"x"),
        "two different tokenizers",
    ),
    "another tokenizer": (
        lambda s: (s.parent.parent / "tokenizer" / "tokenizer.pkl").write_bytes(b"x"),
        "not a nanochat tokenizer",
    ),
    "a tensor missing": (
        lambda s: _weights(s, lambda w: w.pop("lm_head.weight")),
        "the model lacks lm_head.weight",
    ),
    "a tensor more": (
        lambda s: _weights(s, lambda w: w.update(extra=torch.ones(2))),
        "the model has no place for extra",
    ),
    "a tensor of another era": (
        lambda s: _weights(s, lambda w: w.update(bigram_lambdas=torch.ones(4))),
        "no place for bigram_lambdas",
    ),
    "a tensor cut short": (
        lambda s: _weights(s, lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:100]})),
        "has the shape",
    ),
    "whole numbers": (
        lambda s: _weights(
            s, lambda w: w.update({"smear_lambda": torch.ones(1, dtype=torch.int64)})
        ),
        "holds torch.int64",
    ),
    "a truncated model": (lambda s: _truncate(s / "model_000010.pt"), "cannot be read as weights"),
    "no model": (
        lambda s: (s / "model_000010.pt").write_bytes(b"hello"),
        "cannot be read as weights",
    ),
    "not weights": (
        lambda s: torch.save([1, 2], s / "model_000010.pt"),
        "does not hold the weights",
    ),
    "wrong lengths": (
        lambda s: torch.save(torch.ones(3), s.parent.parent / "tokenizer" / "token_bytes.pt"),
        "does not hold 265 numbers",
    ),
    "another era's pattern": (lambda s: _meta(s, window_pattern="XYZ"), "window_pattern='XYZ'"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_folder_is_one_line_and_leaves_nothing(name: str, base: Path, root: Path) -> None:
    spoil, why = WRONG[name]
    source = write(root)
    spoil(source)
    with pytest.raises(ValueError, match=why) as refused:
        opened(source, base)
    assert "\n" not in str(refused.value)
    assert not (base / "imported").exists() or not list((base / "imported").iterdir())
