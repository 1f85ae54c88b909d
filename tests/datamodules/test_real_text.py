"""The whole way on real text from the mirror."""

import itertools

import torch
from byte_tokenizer import ByteTokenizer

from nanochat.datamodules import text


def test_open_prose_from_shards_to_batches(mirror):
    options = {"sequence_len": 256, "num_workers": 0, "mirror_only": True, "prepare_workers": 2}
    module = text.shards("corpus/open-prose", 1, 5, **options)
    module.attach(ByteTokenizer(), batch_tokens=16 * 256)
    module.prepare_data()
    module.setup()
    batch = module.batch(100)
    assert (batch.idx[:, 0] == 256).all()
    for found, k in zip(itertools.islice(module.train_dataloader(), 3), range(3), strict=True):
        assert torch.equal(found["idx"], module.batch(k).idx)
    assert sum(len(b["idx"]) for b in module.val_batches(10_000)) == 39
    assert [len(module.source.parts(split)) for split in ("train", "val")] == [1, 1]
    documents = sum(module.folder.meta(spec)["documents"] for spec in module.folder.specs["val"])
    assert documents == 1024  # what its README says


def test_tinyshakespeare_as_nanogpt_splits_it(mirror):
    path = mirror / "karpathy" / "tinyshakespeare" / "input.txt"
    module = text.local(
        str(path),
        val_by="tail",
        val_fraction=0.1,
        packing="stream",
        sequence_len=64,
        num_workers=0,
        seed=1337,
    )
    module.attach(ByteTokenizer(), batch_tokens=12 * 64)
    module.prepare_data()
    lengths = [len(text) for split in ("train", "val") for text in module.source.documents(split)]
    assert lengths == [1_003_854, 111_540]  # as nanoGPT's data/shakespeare_char prints
    assert module.rows("train").total() == 1_003_854 // 64


def test_a_hub_data_set_in_the_mirror(mirror):
    module = text.hub(
        "Salesforce/wikitext",
        config="wikitext-2-v1",
        split="validation",
        val_split="test",
        sequence_len=64,
    )
    assert len(list(module.source.documents("train"))) > 2000
