import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from byte_tokenizer import ByteTokenizer
from lightning import LightningModule, Trainer

from nanochat.datamodules import rows, shards, text
from nanochat.datamodules.by_step import share_out
from nanochat.datamodules.sources import LocalFiles
from nanochat.datamodules.text import TextDataModule

PACKINGS = ("best_fit", "stream")
T = 32


@pytest.fixture
def files(tmp_path, texts, monkeypatch):
    """Six files, each a shard, in segments of two."""
    monkeypatch.setattr(LocalFiles, "group_bytes", 1)
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text("\n".join(texts(60, i, mean=15)))
    monkeypatch.setattr(rows, "SEGMENT_BYTES", (folder / "0.txt").stat().st_size + 10)
    return folder


@pytest.fixture
def make(files):
    def make_module(
        packing="best_fit",
        world_size=1,
        rank=0,
        batch_rows=12,
        micro=2,
        workers=0,
        seed=1,
        **options,
    ):
        source = LocalFiles(files, documents="line", val_fraction=0.15)
        module = TextDataModule(
            source,
            sequence_len=T,
            rows_per_device=micro,
            packing=packing,
            seed=seed,
            num_workers=workers,
            **options,
        )
        module.attach(
            ByteTokenizer(), batch_tokens=batch_rows * T, world_size=world_size, rank=rank
        )
        module.prepare_data()
        module.setup()
        return module

    return make_module


def take(module, steps):
    return list(itertools.islice(module.train_dataloader(), steps * module.accumulate))


def epoch_steps(module):
    return module.rows("train").total() // module.batch_rows


@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_are_the_same_in_any_order_of_asking(make, packing):
    first, second = make(packing), make(packing)
    steps = 3 * epoch_steps(first)
    forward = [first.batch(k) for k in range(steps)]
    assert forward[-1].epoch >= 2
    for k in reversed(range(steps)):
        again = second.batch(k)
        assert torch.equal(again.idx, forward[k].idx)
        assert torch.equal(again.targets, forward[k].targets)
        assert again.documents == forward[k].documents


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_loader_gives_the_global_batches(make, packing):
    module = make(packing)
    found = take(module, 8)
    assert module.accumulate == 6
    for k in range(8):
        batch, micro = module.batch(k), found[k * 6 : k * 6 + 6]
        assert torch.equal(torch.cat([m["idx"] for m in micro]), batch.idx)
        assert torch.equal(torch.cat([m["targets"] for m in micro]), batch.targets)
        assert torch.equal(batch.idx[:, 1:], batch.targets[:, :-1])
        assert {m["step"] for m in micro} == {k}
        assert {int(m["num_targets"]) for m in micro} == {batch.num_targets} == {12 * T}
        assert batch.idx.dtype == batch.targets.dtype == torch.int64


@pytest.mark.parametrize(("world_size", "micro"), [(2, 3), (3, 1), (6, 2)])
def test_ranks_share_the_rows_of_the_same_global_batch(make, world_size, micro):
    whole = make()
    ranks = [make(world_size=world_size, rank=rank, micro=micro) for rank in range(world_size)]
    for k, parts in enumerate(zip(*(take(module, 5) for module in ranks), strict=True)):
        step, part = divmod(k, ranks[0].accumulate)
        for rank, found in enumerate(parts):
            begin = rank * (12 // world_size) + part * micro
            assert found["step"] == step
            assert torch.equal(found["idx"], whole.batch(step).idx[begin : begin + micro])


def test_loader_processes_change_nothing(make):
    alone, helped = take(make(), 6), take(make(workers=2), 6)
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["idx"], b["idx"])
        assert torch.equal(a["targets"], b["targets"])
        assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5, 40])
def test_a_resumed_loader_continues(make, workers, step):
    module = make(workers=workers)
    module.load_state_dict({"step": step})
    assert module.state_dict() == {"step": step}
    for k, found in enumerate(take(module, 2)):
        expected = module.batch(step + k // 6).idx[k % 6 * 2 : k % 6 * 2 + 2]
        assert torch.equal(found["idx"], expected)


FRESH = """
import hashlib, sys
sys.path[:0] = [{here!r}]
from byte_tokenizer import ByteTokenizer
from nanochat.datamodules import rows
from nanochat.datamodules.sources import LocalFiles
from nanochat.datamodules.rows import Rows
from nanochat.datamodules.shards import ShardFolder
from nanochat.runtime.paths import base_dir
LocalFiles.group_bytes = 1
rows.SEGMENT_BYTES = {segment}
for how in {packings!r}:
    source = LocalFiles({files!r}, documents="line", val_fraction=0.15)
    folder = ShardFolder(source, ByteTokenizer(), base_dir() / "token_shards")
    folder.build_all()
    stream = Rows(folder, "train", sequence_len=32, packing=how, seed=1)
    for k in {steps}:
        rows = stream.gather(12 * k, 12 * k + 12)[:, :-1].astype("int64")
        print(hashlib.sha256(rows.tobytes()).hexdigest())
"""


def test_a_fresh_process_on_a_fresh_cache_gives_the_same_batches(
    make, files, tmp_path, monkeypatch
):
    here, steps = str(Path(__file__).parent), [70, 3, 0]
    code = FRESH.format(
        here=here, segment=rows.SEGMENT_BYTES, files=str(files), packings=PACKINGS, steps=steps
    )
    modules = [make(packing) for packing in PACKINGS]
    expected = [
        hashlib.sha256(m.batch(k).idx.numpy().tobytes()).hexdigest() for m in modules for k in steps
    ]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_batches_depend_on_the_seed_and_on_the_shards_before(make, files, texts):
    assert not torch.equal(make(seed=1).batch(0).idx, make(seed=2).batch(0).idx)
    before = make()
    first = [before.batch(k) for k in range(3)]
    # a file at the end changes no batch of the first segment
    (files / "9.txt").write_text("\n".join(texts(60, 9)))
    after = make()
    assert all(torch.equal(after.batch(k).idx, batch.idx) for k, batch in enumerate(first))


def row_documents(module, epoch):
    train = module.rows("train")
    per_epoch = {}
    for row in itertools.count():
        here = train.epoch(row)
        if here > epoch:
            return per_epoch
        per_epoch.setdefault(here, []).append(train.documents(row))


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_epoch_has_another_order(make, packing):
    per_epoch = row_documents(make(packing), 3)
    orders = [[d for row in per_epoch[e] for d, _, _ in row] for e in range(4)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    shards = [list(dict.fromkeys(d.split("#")[0] for d in order)) for order in orders]
    assert [sorted(shards[0][i : i + 2]) for i in (0, 2, 4)] == [
        ["0.txt", "1.txt"],
        ["2.txt", "3.txt"],
        ["4.txt", "5.txt"],
    ]
    # later epochs take the shards in another order
    assert len({frozenset(s[:2]) for s in shards}) > 1


def test_rows_begin_with_a_document(make):
    module = make()
    batch = module.batch(7)
    assert (batch.idx[:, 0] == 256).all()
    assert all(start == 0 for row in batch.documents for _, start, _ in row)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_documents_of_a_batch_are_its_tokens(make, packing):
    module = make(packing)
    source = module.source
    texts = {
        f"{part.name}#{i}": t
        for part in source.parts("train")
        for i, t in enumerate(source.read(part, "train"))
    }
    for k in (0, 9, 33):
        batch = module.batch(k)
        for row, last, documents in zip(
            batch.idx, batch.targets[:, -1], batch.documents, strict=True
        ):
            ids = [*row.tolist(), int(last)]
            rebuilt = [
                i for name, a, n in documents for i in [256, *texts[name].encode()][a : a + n]
            ]
            assert ids == rebuilt


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_ledger_balances_to_the_token(make, packing):
    module = make(packing)
    steps = epoch_steps(module)
    lengths = {}
    for spec in module.folder.specs["train"]:
        for i, n in enumerate(module.folder.open(spec).lengths):
            lengths[f"{spec.part.name}#{i}"] = int(n)
    for k in (0, 1, 7, steps, steps + 1, 3 * steps + 2):
        told = module.ledger(k)
        parts = [told[f"tokens_{name}"] for name in ("trained", "context", "cropped", "dropped")]
        assert told["tokens_read"] == sum(parts)
        assert (
            told["tokens_trained"]
            == k * 12 * T
            == sum(module.batch(j).num_targets for j in range(k))
        )
        epochs = [module.rows("train").epoch(row) for row in range(k * 12)]
        assert told["tokens_repeated"] == T * sum(e > 0 for e in epochs)
        assert told["epochs"] == (epochs[-1] + 1 if epochs else 0)
    train = module.rows("train")
    whole = train.epoch_tally()
    assert (whole.tokens_read, whole.documents_read) == (sum(lengths.values()), len(lengths))
    if packing == "best_fit":  # counted again from the rows themselves
        rows_of = [train.documents(row) for row in range(train.total())]
        placed = [piece for row in rows_of for piece in row]
        assert (
            len({d for d, _, _ in placed}) == len(placed) == len(lengths) - whole.documents_dropped
        )
        cut = sum(lengths[d] - n for d, _, n in placed)
        assert cut == whole.tokens_cropped
        assert sum(lengths[d] for d, _, _ in placed) == whole.tokens_read - whole.tokens_dropped
        assert whole.documents_cropped == sum(lengths[d] > n for d, _, n in placed)


def test_validation_rows_are_the_same_whatever_the_ranks(make):
    alone = make(micro=4)
    for tokens in (None, 11 * T, 1):
        whole = [row for b in alone.val_batches(tokens) for row in b["idx"]]
        targets = [row for b in alone.val_batches(tokens) for row in b["targets"]]
        assert tokens is None or len(whole) == max(tokens // T, 1)
        for world_size in (2, 3):
            shares = []
            for rank in range(world_size):
                module = make(world_size=world_size, rank=rank, micro=2)
                batches = list(module.val_batches(tokens))
                assert all(
                    b["idx"].shape == b["targets"].shape and len(b["idx"]) <= 2 for b in batches
                )
                shares.append(
                    [pair for b in batches for pair in zip(b["idx"], b["targets"], strict=True)]
                )
            assert len({len(share) for share in shares}) == 1  # every rank runs as many batches
            both = [pair for pairs in zip(*shares, strict=True) for pair in pairs]
            assert all(torch.equal(row, idx) for row, (idx, _) in zip(whole, both, strict=False))
            assert all(torch.equal(row, t) for row, (_, t) in zip(targets, both, strict=False))
            assert all((t == -1).all() for _, t in both[len(whole) :])


def test_validation_has_nothing_of_training(make):
    module = make()
    val = {
        d
        for row in range(module.rows("val").total())
        for d, _, _ in module.rows("val").documents(row)
    }
    assert val
    train = set(module.source.documents("train"))
    assert not train & set(module.source.documents("val"))


def test_far_batches_cost_one_segment(make, monkeypatch):
    module = make()
    far = 40 * epoch_steps(module)
    expected = module.batch(far).idx
    packed = []
    monkeypatch.setattr(
        rows, "pack", lambda how, *a, **k: packed.append(how) or text_pack(how, *a, **k)
    )
    assert torch.equal(make().batch(far).idx, expected)
    # two to check the setting, and what the batch lies in; the journal knew the rest
    assert len(packed) <= 5


text_pack = rows.pack


def test_a_journal_lost_or_torn_costs_only_time(make):
    module = make()
    expected = module.batch(50).idx
    journal = module.folder.folder / "segments.jsonl"
    raw = journal.read_bytes()
    for left in (b"", raw[: len(raw) // 2], b"\x00\xff{]\n" + raw[7:]):
        journal.write_bytes(left)
        assert torch.equal(make().batch(50).idx, expected)


@pytest.mark.slow
def test_training_starts_before_all_shards_are_there(make, monkeypatch):
    from byte_tokenizer import SlowTokenizer

    monkeypatch.setattr(text, "ShardFolder", lambda s, t, d: shard_folder(s, SlowTokenizer(), d))
    module = make(prepare_workers=2)
    first = module.batch(0)
    assert module.folder.missing()
    every = [module.batch(k) for k in range(epoch_steps(module))]  # waits for the rest
    assert all(module.folder.meta(spec) for spec in module.folder.specs["train"])
    assert torch.equal(first.idx, every[0].idx)


shard_folder = text.ShardFolder


def test_a_batch_shared_out():
    assert share_out(524_288, 2048, 8, None) == (256, 32)
    assert share_out(64 * 24, 64, 1, None) == (24, 24)
    assert share_out(64 * 34, 64, 1, None) == (34, 17)
    message = (
        r"batch_tokens=524,288 is not a multiple of 393,216 \(24 rows x 2048 tokens x 8 ranks\); "
        r"try data.rows_per"
    )
    with pytest.raises(ValueError, match=message):
        share_out(524_288, 2048, 8, 24)
    with pytest.raises(
        ValueError,
        match=r"500,000 is not a multiple of 2,048 \(2048 tokens\); try batch_tokens=499712",
    ):
        share_out(500_000, 2048, 1, None)
    with pytest.raises(ValueError, match=r"try batch_tokens=16384"):
        share_out(100, 2048, 8, None)


def test_bad_settings(make, files):
    with pytest.raises(ValueError, match="packing=fifo is not known"):
        make("fifo")
    with pytest.raises(ValueError, match=r"data.num_workers=-1 is below 0; give 0 or more"):
        make(workers=-1)
    for path in files.iterdir():
        path.write_text("abc")
    with pytest.raises(
        ValueError,
        match=r"the (val|train) split has .* tokens in .* documents, less than a row of 32 \+ 1",
    ):
        make()


def test_the_manifest_names_what_batches_are_a_function_of(make):
    one, two = make().manifest(), make(seed=2).manifest()
    assert json.loads(json.dumps(one)) == one
    assert {key for key in one if one[key] != two[key]} == {"seed"}


def test_the_manifest_explains_itself(make, files, monkeypatch):
    module = make()
    found = module.manifest()
    assert found["hash"] == module.source.manifest_hash
    assert found["origin"]["path"] == str(files)
    assert found["settings"]["documents"] == "line"
    paths = sorted(files.iterdir())
    train = found["files"]["train"]
    assert train["first"] == [
        [p.name, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()] for p in paths
    ]
    assert (train["count"], train["bytes"]) == (6, sum(p.stat().st_size for p in paths))
    assert found["files"]["val"]["count"] == 0  # they are in the same files
    assert found["validation"]["documents"] == len(list(module.source.documents("val")))
    assert "in the lowest 0.15 of all" in found["validation"]["chosen"]
    monkeypatch.setattr(text, "MANIFEST_FILES", 2)
    short = module.manifest()
    assert (len(short["files"]["train"]["first"]), short["files"]["train"]["count"]) == (2, 6)
    assert short["hash"] == found["hash"]


def test_documents_not_counted_yet_are_none_in_the_manifest(files):
    source = LocalFiles(files, documents="line", val_fraction=0.15)
    module = TextDataModule(source, sequence_len=T)
    module.attach(ByteTokenizer(), batch_tokens=12 * T)
    assert module.manifest()["validation"]["documents"] is None


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("built", ["elsewhere", "in the loader"])
def test_what_building_a_late_shard_ran_into_is_one_line(make, files, monkeypatch, workers, built):
    monkeypatch.setattr(shards, "ALONE_SECONDS", 0.1)
    whole = make()
    steps = epoch_steps(whole)
    module = TextDataModule(whole.source, sequence_len=T, rows_per_device=2, num_workers=workers)
    module.attach(ByteTokenizer(), batch_tokens=12 * T)
    spec, path = module.folder.specs["train"][-1], files / "5.txt"
    module.folder._path(spec, ".json").unlink()
    path.write_bytes(b"caf\xe9")
    line = f"{path} is not UTF-8 at byte 3; convert it, or set data.bad_utf8=replace"
    if built == "elsewhere":
        module.folder._path(spec, ".error").write_text(line)
    with pytest.raises(ValueError, match="is not UTF-8") as caught:
        take(module, steps)
    assert str(caught.value) == line


class Recorder(LightningModule):
    """Trains nothing and writes down what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["step"], batch["idx"].clone()))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_at_the_step_after_the_last(make, tmp_path, workers):
    def fit(steps, ckpt=None):
        module, data = Recorder(), make(workers=workers)
        trainer = Trainer(
            max_steps=steps,
            accumulate_grad_batches=data.accumulate,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=False)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module.seen

    whole = fit(7)
    first = fit(3)
    rest = fit(7, tmp_path / "last.ckpt")
    assert [step for step, _ in whole] == [k for k in range(7) for _ in range(6)]
    assert [step for step, _ in rest] == [step for step, _ in whole[18:]]
    for (_, a), (_, b) in zip(whole, first + rest, strict=True):
        assert torch.equal(a, b)
