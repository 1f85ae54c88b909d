"""A file that is not what was written is named by whatever opens it; nothing damaged is used."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint import folder
from nanochat.checkpoint.opened import open_checkpoint
from nanochat.checkpoint.runs import RunCheckpoints, resolve
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer.tokenizer import BPETokenizer

FILES = ("model.safetensors", "config.json", "tokenizer.json", "token_bytes.npy", "lineage.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 10 and 20."""
    run = tmp_path_factory.mktemp("base") / "runs" / "r" / "2026-01-01_00-00-00Z"
    tokenizer = BPETokenizer([])
    gpt = GPT.build(GPTConfig(64, tokenizer.vocab_size, 2, 4, 2, 64), seed=0)
    for step in (10, 20):
        path = RunCheckpoints(run / "checkpoints").path(step)
        folder.save(
            path,
            gpt.state_dict(),
            gpt.config,
            tokenizer,
            {"config": {"phase": "base"}},
            {"n": torch.ones(9)},
        )
    (run / "record.json").write_text('{"started": "2026-01-01T00:00:00+00:00"}')
    return run


@pytest.fixture
def run(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return shutil.copytree(written, tmp_path / "runs" / "r" / written.name)


def flip(file: Path, bit: int = 5) -> None:
    """One bit in the middle; size and times stay."""
    import os

    times, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_named_with_a_sound_one_beside_it(run: Path, name: str, bit: int) -> None:
    # and every file was hashed once
    assert open_checkpoint("r@latest", device="cpu").path.name == "step_000020"
    flip(run / "checkpoints" / "step_000020" / name, bit)
    for opens in (
        lambda: open_checkpoint("r@latest", device="cpu"),
        lambda: resolve("r@20", run.parents[1]),
    ):
        with pytest.raises(
            ValueError,
            match=(
                rf"step_000020/{name} is damaged .*xxh3_128.* newest undamaged one: "
                r".*step_000010$"
            ),
        ):
            opens()
    assert open_checkpoint("r@10", device="cpu").path.name == "step_000010"
    found, problems = RunCheckpoints(run / "checkpoints").latest_sound()
    assert found is not None and found.name == "step_000010" and name in problems[0]


def test_a_flipped_bit_in_the_state_stops_resuming_and_nothing_else(run: Path) -> None:
    last = run / "checkpoints" / "step_000020"
    assert torch.equal(folder.read_state(last)["n"], torch.ones(9))
    flip(last / folder.STATE)
    with pytest.raises(
        ValueError, match=r"state\.pt is damaged .* newest undamaged one: .*step_000010$"
    ):
        folder.read_state(last)
    assert open_checkpoint("r@latest", device="cpu").path == last
    assert RunCheckpoints(run / "checkpoints").latest_sound()[0] == last.with_name("step_000010")


def test_by_option_files_go_by_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = run / "checkpoints" / "step_000020"
    flip(last / "model.safetensors")
    monkeypatch.setenv("NANOCHAT_CHECK_HASHES", "false")
    assert resolve("r@latest", run.parents[1]) == last
    monkeypatch.setenv("NANOCHAT_CHECK_HASHES", "perhaps")
    with pytest.raises(
        ValueError, match="NANOCHAT_CHECK_HASHES=perhaps is not known; choose from true, false"
    ):
        resolve("r@latest", run.parents[1])


def test_a_checkpoint_of_before_there_were_hashes_loads(run: Path) -> None:
    last = run / "checkpoints" / "step_000020"
    files = json.loads((last / "files.json").read_text())
    assert set(files) == {*FILES, folder.STATE}
    (last / "files.json").write_text(
        json.dumps({name: facts["bytes"] for name, facts in files.items()})
    )
    assert open_checkpoint("r@latest", device="cpu").path == last
    (last / "config.json").write_bytes(
        (last / "config.json").read_bytes().replace(b'"n_embd"', b'"n_embe"')
    )
    with pytest.raises(ValueError, match=r"step_000020/config\.json does not describe a model"):
        folder.read_config(last)
    (last / "config.json").write_bytes(
        (last / "config.json").read_bytes().replace(b"{", b"\xff", 1)
    )
    with pytest.raises(ValueError, match=r"step_000020/config\.json is not readable JSON"):
        folder.read_config(last)
