"""A token shard or rendered conversations that hold other valid ids than were written are made
again."""

import logging
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import ByteTokenizer

from nanochat.datamodules.rendered import render_task
from nanochat.datamodules.shards import ShardFolder
from nanochat.datamodules.sources import LocalFiles
from nanochat.tasks.jsonl import JSONL
from nanochat.tokenizer.tokenizer import BPETokenizer


def overwrite(path: Path, kind: type) -> None:
    """Other valid values, as many."""
    values = np.fromfile(path, kind)
    values[len(values) // 2] ^= 1
    path.write_bytes(values.tobytes())


@pytest.fixture
def shards(tmp_path, texts, monkeypatch) -> ShardFolder:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "a.txt").write_text("\n".join(texts(40, 0)))
    folder = ShardFolder(
        LocalFiles(tmp_path / "a.txt", documents="line", val_fraction=0.1),
        ByteTokenizer(),
        tmp_path,
    )
    folder.build_all()
    return folder


@pytest.mark.parametrize("looked_at_before", [True, False])
def test_a_shard_overwritten_with_other_ids_is_made_again(shards, looked_at_before, caplog):
    spec = shards.specs["train"][0]
    before = shards._path(spec, ".bin").read_bytes()
    if looked_at_before:
        assert shards.open(spec).tokens.tobytes() == before
    overwrite(shards._path(spec, ".bin"), np.uint16)
    assert shards._path(spec, ".bin").read_bytes() != before
    with caplog.at_level(logging.WARNING, "nanochat.data"):
        assert shards.missing() == [spec] and shards.missing() == [spec]
        shards.build_all()
        assert shards.open(spec).tokens.tobytes() == before
    assert [r.message.count("is damaged or was changed (sha256)") for r in caplog.records] == [1]


def test_by_option_shards_go_by_size(shards, monkeypatch):
    overwrite(shards._path(shards.specs["train"][0], ".bin"), np.uint16)
    monkeypatch.setenv("NANOCHAT_CHECK_HASHES", "false")
    assert shards.missing() == []


@pytest.mark.parametrize("name", ["ids.bin", "mask.bin", "offsets.npy", "meta.json"])
def test_damaged_rendered_conversations_are_rendered_again(tmp_path, monkeypatch, name):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    line = (
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello"}]}\n'
    )
    (tmp_path / "talk.jsonl").write_text(line * 3)
    task, tokenizer = JSONL(path=tmp_path / "talk.jsonl", name="talk"), BPETokenizer([])
    place = render_task(task, tokenizer, tmp_path / "rendered").place
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    overwrite(place / name, np.uint8)
    again = render_task(task, tokenizer, tmp_path / "rendered")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert len(again) == 3
