import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import ByteTokenizer, SlowTokenizer

from nanochat.datamodules import shards
from nanochat.datamodules.shards import ShardFolder
from nanochat.datamodules.sources import LocalFiles


@pytest.fixture
def make(tmp_path, texts, monkeypatch):
    """A folder of shards of eight small files, each its own part."""
    monkeypatch.setattr(LocalFiles, "group_bytes", 1)
    files = tmp_path / "files"
    files.mkdir()
    for i in range(8):
        (files / f"{i}.txt").write_text("\n".join(texts(40, i)))

    def make_folder(name="shards", tokenizer=None) -> ShardFolder:
        source = LocalFiles(files, documents="line", val_fraction=0.1)
        return ShardFolder(source, tokenizer or ByteTokenizer(), tmp_path / name)

    return make_folder


def content(folder: ShardFolder) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.folder.iterdir()) if path.is_file()
    }


def test_a_shard_holds_its_documents_each_after_bos(make):
    folder = make()
    folder.build_all()
    for split in ("train", "val"):
        for spec in folder.specs[split]:
            shard, meta = folder.open(spec), folder.meta(spec)
            documents = list(folder.source.read(spec.part, split))
            assert (meta["documents"], meta["tokens"]) == (len(documents), len(shard.tokens))
            assert meta["characters"] == sum(map(len, documents))
            for i, text in enumerate(documents):
                ids = shard.tokens[shard.offsets[i] : shard.offsets[i + 1]]
                assert ids[0] == 256
                assert bytes(ids[1:].astype(np.uint8)).decode() == text
            for ending, key in ((".bin", "bin_sha256"), (".offsets.npy", "offsets_sha256")):
                assert (
                    hashlib.sha256(folder._path(spec, ending).read_bytes()).hexdigest() == meta[key]
                )
    assert not folder.missing()
    assert not list(folder.folder.glob("*.tmp")) + list(folder.folder.glob("*.lock"))


def test_large_vocabularies_take_four_bytes(make):
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size = 2**16 + 1
    folder = make(tokenizer=tokenizer)
    folder.build_all()
    assert folder.open(folder.specs["train"][0]).tokens.dtype == np.uint32


def test_shards_are_found_again_when_files_arrive_and_not_when_settings_change(make, tmp_path):
    folder = make()
    folder.build_all()
    (tmp_path / "files" / "0a.txt").write_text("one more\nfile")
    assert {spec.part.name for spec in make().missing()} == {"0a.txt"}
    (tmp_path / "files" / "0.txt").write_text("changed")
    assert {spec.part.name for spec in make().missing()} == {"0a.txt", "0.txt"}
    source = LocalFiles(tmp_path / "files", documents="paragraph", val_fraction=0.1)
    other = ShardFolder(source, ByteTokenizer(), tmp_path / "shards")
    assert len(other.missing()) == len(other.order)


@pytest.mark.parametrize("ending", [".bin", ".offsets.npy", ".json"])
@pytest.mark.parametrize("damage", ["truncated", "gone", "empty"])
def test_a_shard_that_is_not_whole_is_built_again(make, ending, damage):
    folder = make()
    folder.build_all()
    before = content(folder)
    path = folder._path(folder.specs["train"][3], ending)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -5 if damage == "truncated" else 0])
    assert folder.missing() == [folder.specs["train"][3]]
    folder.build_all()
    assert content(folder) == before


def test_what_a_killed_builder_left_does_not_matter(make):
    folder = make()
    folder.folder.mkdir(parents=True)
    stem = folder.specs["train"][0].stem
    for name in (f"{stem}.bin.0badcafe.tmp", f"{stem}.lock", f"{stem}.bin"):
        (folder.folder / name).write_bytes(b"half")
    folder.build_all()
    clean = make("elsewhere")
    clean.build_all()
    assert content(folder) == content(clean)


BUILD = """
import sys
sys.path[:0] = [{here!r}]
from byte_tokenizer import SlowTokenizer
from nanochat.datamodules.shards import ShardFolder
from nanochat.datamodules.sources import LocalFiles
from pathlib import Path
LocalFiles.group_bytes = 1
source = LocalFiles({files!r}, documents="line", val_fraction=0.1)
folder = ShardFolder(source, SlowTokenizer(), Path({out!r}))
{then}
"""


def script(tmp_path, out, then="folder.build_all()"):
    here = str(Path(__file__).parent)
    code = BUILD.format(
        here=here, files=str(tmp_path / "files"), out=str(tmp_path / out), then=then
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ, stdout=subprocess.PIPE, text=True
    )


def test_a_builder_does_without_pytorch():
    """Importing it takes a builder of each core seconds."""
    code = "import sys, nanochat.datamodules.shards; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def wait_for(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_builders_continue_to_the_same_bytes(make, tmp_path):
    folder = make(tokenizer=SlowTokenizer())
    for kept in (2, 5, 9):
        process = script(tmp_path, "shards")
        wait_for(lambda n=kept: len(list(folder.folder.glob("*.json"))) >= n)
        wait_for(lambda: list(folder.folder.glob("*.tmp")))
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = len(folder.missing())
        assert 0 < left <= len(folder.order) - kept
    folder.build_all()
    clean = make("elsewhere")
    clean.build_all()
    assert content(folder) == content(clean)


@pytest.mark.slow
def test_two_builders_at_once_make_each_shard_once(make, tmp_path):
    folder = make(tokenizer=SlowTokenizer())
    both = [script(tmp_path, "shards") for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    clean = make("elsewhere")
    clean.build_all()
    assert content(folder) == content(clean)


def test_builders_end_with_the_process_that_started_them(make, tmp_path):
    folder = make(tokenizer=SlowTokenizer())
    process = script(
        tmp_path, "shards", "b = folder.start_builders(2); folder.open(folder.order[-1])"
    )
    wait_for(lambda: list(folder.folder.glob("*.json")))
    assert folder.in_progress()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not folder.in_progress())
    assert folder.missing()


@pytest.mark.slow
def test_a_loader_waits_for_the_shard_it_needs(make, caplog, monkeypatch):
    monkeypatch.setattr(shards, "MESSAGE_SECONDS", 0.0)
    folder = make(tokenizer=SlowTokenizer())
    builders = folder.start_builders(2)
    first = folder.open(folder.order[0])
    assert len(first.tokens)
    assert folder.missing()  # others are still being made
    builders.wait(folder.order)
    assert not folder.missing()
    assert "waiting for token shard" in caplog.text


HOLD = (
    "b = folder.start_builders(2); print(len(b.processes), flush=True); import time; time.sleep(60)"
)


@pytest.mark.slow
def test_builders_are_started_once_for_the_same_shards_and_replaced_when_they_were_killed(
    make, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards, "STAND_BY_SECONDS", 0.05)
    folder = make(tokenizer=SlowTokenizer())
    owner = script(tmp_path, "shards", HOLD)
    assert owner.stdout.readline() == "2\n"
    second = folder.start_builders(2)
    second.wait(folder.order[:1])  # by the other's work
    assert second.processes == []
    assert folder.missing()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_for(lambda: len(second.processes) == 2)
    assert folder.missing()
    second.wait(folder.order)
    for process in second.processes:
        process.wait(10)
    clean = make("elsewhere")
    clean.build_all()
    assert content(folder) == content(clean)  # the claim is gone too


@pytest.mark.slow
def test_a_live_owner_of_dead_builders_keeps_nobody_from_building(make):
    folder = make(tokenizer=SlowTokenizer())
    first = folder.start_builders(2)
    for process in first.processes:
        process.kill()
        process.wait()
    again = folder.start_builders(2)
    assert len(again.processes) == 2
    again.wait(folder.order)


@pytest.mark.slow
def test_builders_of_other_shards_are_not_waited_for(make, tmp_path):
    few = make(tokenizer=SlowTokenizer())
    assert few.start_builders(1).processes
    (tmp_path / "files" / "9.txt").write_text("one more\nfile")
    more = make(tokenizer=SlowTokenizer())
    started = more.start_builders(1)
    assert started.processes
    started.wait(more.order)


def test_a_loader_that_waits_for_nobody_builds_by_itself(make, caplog, monkeypatch):
    monkeypatch.setattr(shards, "ALONE_SECONDS", 0.2)
    folder = make()
    assert len(folder.open(folder.specs["train"][5]).tokens)
    assert "building it here" in caplog.text


def test_a_shard_built_by_another_thread_arrives(make):
    folder = make()
    thread = threading.Timer(0.2, folder.build_all)
    thread.start()
    assert len(folder.open(folder.order[-1]).tokens)
    thread.join()


@pytest.mark.parametrize("processes", [0, 1])
def test_what_a_builder_ran_into_is_raised_where_it_is_waited_for(make, tmp_path, processes):
    bad = tmp_path / "files" / "4.txt"
    bad.write_bytes(b"caf\xe9")
    folder = make()

    def run():
        builders = folder.start_builders(processes)
        builders.wait(folder.order)

    with pytest.raises(ValueError, match=r"4\.txt is not UTF-8 at byte 3"):
        run()
    bad.write_text("café")
    folder = make()
    if builders := folder.start_builders(processes):
        builders.wait(folder.order)
    assert not folder.missing()


def test_little_text_is_built_without_processes(make):
    folder = make()
    assert folder.start_builders() is None
    assert not folder.missing()
    assert folder.start_builders(2) is None


def test_too_little_disk_is_said_before_anything_is_written(make, monkeypatch):
    folder = make()
    monkeypatch.setattr(
        shards.shutil, "disk_usage", lambda path: shards.shutil._ntuple_diskusage(10, 10, 0)
    )
    with pytest.raises(
        OSError,
        match=r"token shards .* need about .* GB more in .* and 0.0 GB are free; set NANOCHAT",
    ):
        folder.start_builders(0)
    assert not folder.folder.exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(make, monkeypatch):
    folder = make()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_sync", full)
    with pytest.raises(
        OSError,
        match=r"cannot write .*: No space left on device; free space or set NANOCHAT_BASE_DIR",
    ):
        folder.build(folder.order[0])
    assert not list(folder.folder.iterdir())
