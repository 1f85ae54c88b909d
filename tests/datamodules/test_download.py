"""The hub is played by a folder: these tests say what is done with what it answers, not that it
answers."""

import hashlib
import json
import shutil
import threading

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile

from nanochat.datamodules import download, text
from nanochat.datamodules.download import HubDataset, HubFiles, matches, shards_needed, split_files
from nanochat.tokenizer import train_or_load
from nanochat.tokenizer.training import cached_folder

DATASET = "someone/shards"
COMMON = {"sequence_len": 16, "num_workers": 0}


@pytest.fixture
def hub(tmp_path, monkeypatch, texts):
    """A hub with one data set of six shards; `calls` lists what was asked, `trouble` what goes
    wrong next."""
    store = tmp_path / "store"
    store.mkdir()
    for i in range(6):
        pq.write_table(pa.table({"text": texts(20, i)}), store / f"shard_{i:05d}.parquet")
    (store / "README.md").write_text("no head")
    calls, trouble = [], []

    def entry(path):
        raw = path.read_bytes()
        answer = {"path": path.relative_to(store).as_posix(), "size": len(raw)}
        answer["oid"] = hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()
        if path.suffix == ".parquet":
            answer["lfs"] = {
                "size": len(raw),
                "oid": hashlib.sha256(raw).hexdigest(),
                "pointerSize": 1,
            }
        return RepoFile(**answer)

    class Api:
        def repo_info(self, name, revision=None, repo_type=None):
            calls.append("commit")
            return type("Info", (), {"sha": "c0ffee"})

        def get_paths_info(self, name, paths, repo_type, revision):
            calls.append(("names", len(paths)))
            assert (name, repo_type, revision) == (DATASET, "dataset", "c0ffee")
            return [entry(store / p) for p in paths if (store / p).exists()]

        def list_repo_tree(self, name, recursive, repo_type, revision):
            calls.append("tree")
            return [entry(p) for p in sorted(store.rglob("*")) if p.is_file()]

    def get(name, file, *, repo_type, revision, local_dir, force_download):
        calls.append(file)
        if trouble and (what := trouble.pop(0)):
            if isinstance(what, Exception):
                raise what
            (local_dir / file).write_bytes(what)
            return
        shutil.copy(store / file, local_dir / file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", get)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: calls.append(("slept", seconds)))
    return store, calls, trouble


def shards(n):
    return text.shards(DATASET, n, 5, **COMMON).source


def test_shards_come_from_the_hub_once_and_the_manifest_is_known_before(hub, texts):
    _, calls, _ = hub
    source = shards(2)
    manifest = source.manifest()
    assert calls == ["commit", ("names", 3)]
    assert list(source.documents("train")) == texts(20, 0) + texts(20, 1)
    assert list(source.documents("val")) == texts(20, 5)
    assert sorted(calls[2:]) == [
        "shard_00000.parquet",
        "shard_00001.parquet",
        "shard_00005.parquet",
    ]
    again = shards(2)
    assert list(again.documents("val")) == texts(20, 5)
    assert again.manifest() == manifest
    assert len(calls) == 5


def test_validation_stays_when_more_shards_are_taken(hub, texts):
    few, more = shards(1), shards(4)
    assert few.parts("val") == more.parts("val")
    assert few.parts("train") == more.parts("train")[:1]
    assert len(more.parts("train")) == 4


def test_what_was_cut_off_or_came_wrong_is_fetched_again(hub, texts):
    _, calls, trouble = hub
    source = shards(1)
    trouble += [ConnectionError("reset"), b"half of it", None]
    assert list(source.documents("train")) == texts(20, 0)
    assert calls[2:] == [
        "shard_00000.parquet",
        ("slept", 2),
        "shard_00000.parquet",
        ("slept", 4),
        "shard_00000.parquet",
    ]
    path = source.locate("shard_00000.parquet")
    path.write_bytes(path.read_bytes()[:-1])  # truncated behind our back
    assert list(shards(1).documents("train")) == texts(20, 0)
    assert calls[-1] == "shard_00000.parquet"


def test_a_hub_out_of_reach_is_one_line(hub):
    _, _, trouble = hub
    source = shards(1)
    trouble += [ConnectionError("no route")] * 9
    message = (
        r"cannot get shard_00000.parquet of someone/shards from the hub \(no route\); go online, "
        r"set NANOCHAT_HUB_DIR"
    )
    with pytest.raises(OSError, match=message):
        list(source.documents("train"))


def test_without_a_network_it_says_so_soon(monkeypatch):
    def none(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", none)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    with pytest.raises(
        OSError, match=r"cannot get the list of files of someone/shards from the hub .* data=pydocs"
    ):
        shards(1)


def test_a_shard_that_is_not_there(hub):
    with pytest.raises(
        FileNotFoundError, match=r"shard_00007\.parquet is not a file of someone/shards on the hub"
    ):
        text.shards(DATASET, 1, 7, **COMMON)
    with pytest.raises(
        ValueError,
        match=r"num_shards=9 is not from 1 to the 5 of someone/shards; try data.num_shards=5",
    ):
        shards(9)
    _, _, trouble = hub
    source = shards(1)
    trouble.append(EntryNotFoundError("404"))
    with pytest.raises(ValueError, match="is not on the hub"):
        list(source.documents("train"))


def test_download_gets_what_is_missing_and_says_how_far_it_is(hub):
    _, calls, _ = hub
    source, said = shards(5), []
    source.locate("shard_00003.parquet")
    source.download(said.append)
    assert not source.missing()
    assert sorted(calls[3:]) == [f"shard_{i:05d}.parquet" for i in (0, 1, 2, 4, 5)]
    assert said[-1].startswith("5 of 5 files, ")
    source.download(said.append)
    assert len(said) == 5


def test_reading_fetches_several_files_ahead_and_says_how_far_it_is(
    hub, texts, caplog, monkeypatch
):
    """Downloads that only end once PARALLEL of them are under way."""
    _, calls, _ = hub
    together, plain = threading.Barrier(download.PARALLEL), huggingface_hub.hf_hub_download

    def get(*words, **options):
        together.wait(5)
        plain(*words, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", get)
    source = shards(4)
    assert list(source.documents("train")) == [text for i in range(4) for text in texts(20, i)]
    assert "4 of 4 files, " in caplog.text
    # not the validation shard
    assert sorted(calls[2:]) == [f"shard_{i:05d}.parquet" for i in range(4)]


def test_reading_that_stops_fetches_no_more_than_what_is_ahead(hub, texts, monkeypatch):
    _, calls, _ = hub
    monkeypatch.setattr(download, "PARALLEL", 2)
    documents = shards(5).documents("train")
    assert next(documents) == texts(20, 0)[0]
    documents.close()
    assert not {"shard_00003.parquet", "shard_00004.parquet"} & set(calls)


def test_a_tokenizer_stays_the_same_when_more_shards_are_taken(hub, monkeypatch):
    monkeypatch.setattr(download, "LEAST_SHARDS", 2)
    few, more = shards(2), shards(5)
    keys = {cached_folder(source, "bpe", 300, 1_000_000, None) for source in (few, more)}
    assert len(keys) == 1
    first, second = (train_or_load(source, "bpe", 300, 1_000_000, None) for source in (more, few))
    assert first.hash == second.hash
    assert not [
        file.name
        for file in more.missing()
        if file.name in ("shard_00000.parquet", "shard_00001.parquet")
    ]
    assert len(more.missing()) == 4  # nothing beyond was fetched
    assert cached_folder(shards(1), "bpe", 300, 1_000_000, None) not in keys
    assert len(more.head(3 * download.CHARACTERS_PER_SHARD - 1).files("train")) == 3
    assert more.head(None) is more  # a character table reads everything
    assert len(more.files("train")) == 5


def test_shards_needed():
    """From the facts sheet: shards for nanochat's runs, and the limits."""
    d20, d24, d32 = 11_200_000_000, 5_838_471_168, 37_600_000_000
    assert shards_needed(d20, "stream", 1822) == 216
    assert 720 <= shards_needed(d32, "stream", 1822) <= 740
    assert 150 <= shards_needed(d24, "best_fit", 6542) <= 175  # about 150 needed, 170 downloaded
    assert shards_needed(1, "best_fit", 6542) == 8
    assert shards_needed(1, "best_fit", 5) == 5
    assert shards_needed(10**15, "best_fit", 6542) == 6542
    with pytest.raises(
        ValueError,
        match=r"packing=fifo is not known; choose data.packing=best_fit or data.packing=",
    ):
        shards_needed(d20, "fifo", 6542)


def test_auto_is_as_many_as_a_tokenizer_reads(hub, monkeypatch):
    assert len(shards("auto").files("train")) == 5
    monkeypatch.setattr(text, "LEAST_SHARDS", 2)
    assert len(shards("auto").files("train")) == 2
    with pytest.raises(
        ValueError, match="num_shards=many is not a whole number; give one, auto, or null for all"
    ):
        shards("many")


def test_a_mirror_replaces_the_network(tmp_path, monkeypatch, texts, hub):
    store, calls, _ = hub
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path / "mirror"))
    with pytest.raises(FileNotFoundError, match="someone/shards is not in the mirror"):
        shards(1)
    shutil.copytree(store, tmp_path / "mirror" / DATASET)
    assert list(shards(1).documents("train")) == texts(20, 0)
    assert calls == []
    (tmp_path / "mirror" / DATASET / "shard_00005.parquet").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"shard_00005\.parquet of someone/shards is not in the mirror"
    ):
        shards(1)


def test_what_is_only_in_a_mirror_says_so():
    with pytest.raises(
        ValueError, match="corpus/open-prose is only in a local mirror; set NANOCHAT_HUB_DIR"
    ):
        text.shards("corpus/open-prose", 5, 5, mirror_only=True, **COMMON)


HEAD = """---
pretty_name: a --- b
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - {split: test, path: [data/test-0.jsonl]}
- config_name: other
  data_dir: more
  data_files: {train: "*.jsonl"}
---
"""


@pytest.fixture
def declared(tmp_path, monkeypatch):
    """A data set in a mirror, with its README."""
    folder = tmp_path / "mirror" / "a" / "b"
    for name in ("data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl", "more/x.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            "".join(json.dumps({"body": f"{name} {i}"}) + "\n" for i in range(30))
        )
    (folder / "README.md").write_text(HEAD)
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(tmp_path / "mirror"))
    return folder


def test_files_are_those_the_readme_declares(declared):
    where = HubDataset("a/b")
    assert split_files(where, None, "train") == ["data/train-0.jsonl", "data/train-1.jsonl"]
    assert split_files(where, "default", "test") == ["data/test-0.jsonl"]
    assert split_files(where, "other", "train") == ["more/x.jsonl"]
    with pytest.raises(
        ValueError, match=r"config=none is not one of a/b: default, other; set data.config="
    ):
        split_files(where, "none", "train")
    with pytest.raises(
        ValueError, match=r"split=dev is not one of a/b default: train, test; set data.split="
    ):
        split_files(where, None, "dev")


@pytest.mark.parametrize(
    "readme", [None, "no head", "---\n- a list\n---\n", "---\n{\n---\n", "\xff"]
)
def test_files_are_told_by_their_names_without_a_card(declared, readme):
    (declared / "README.md").unlink()
    if readme is not None:
        (declared / "README.md").write_text(readme, encoding="latin-1")
    where = HubDataset("a/b")
    assert split_files(where, None, "train") == ["data/train-0.jsonl", "data/train-1.jsonl"]
    assert split_files(where, "data", "test") == ["data/test-0.jsonl"]
    assert split_files(where, "more", "train") == ["more/x.jsonl"]
    with pytest.raises(
        ValueError, match="config=none is not a folder of a/b; its folders are data, more"
    ):
        split_files(where, "none", "train")


def test_any_data_set_of_the_hub(declared):
    module = text.hub("a/b", text_field="body", val_fraction=0.2, **COMMON)
    assert isinstance(module.source, HubFiles)
    train, val = (list(module.source.documents(split)) for split in ("train", "val"))
    assert len(train) + len(val) == 60
    assert 3 <= len(val) <= 25
    named = text.hub("a/b", text_field="body", val_split="test", num_shards=1, **COMMON).source
    assert [len(list(named.documents(split))) for split in ("train", "val")] == [30, 30]
    several = text.hub("a/b", config=["default", "other"], text_field="body", **COMMON).source
    assert len(several.files("train")) == 3
    for wrong in (3, 0, "auto"):
        with pytest.raises(
            ValueError, match=f"num_shards={wrong} is not a number from 1 to the 2 files of a/b"
        ):
            text.hub("a/b", text_field="body", num_shards=wrong, **COMMON)
    with pytest.raises(
        ValueError, match=r"line 1 has no field text; it has: body; set data.text_field="
    ):
        text.hub("a/b", **COMMON).source.check()


def test_patterns():
    assert matches("data/train-00000.parquet", "data/train-*")
    assert matches("deep/er/x.json", "**/*.json")
    assert matches("a/b/c.json", "a/**")
    assert not matches("a/b.json", "b.json")
