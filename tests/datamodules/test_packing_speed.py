"""What a loader must never do is show in a profile of training."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from nanochat.datamodules.packing import mix
from nanochat.datamodules.rows import Rows
from nanochat.datamodules.shards import Shard, ShardSpec
from nanochat.datamodules.sources import SourcePart

WANTED = 5e6  # tokens a second and core, from: issue 2


def in_memory(tmp_path, mean: int, tokens: int = 3_000_000, count: int = 2) -> SimpleNamespace:
    """A shard folder without files: documents of `mean` tokens, long-tailed as text is."""
    shards, specs = {}, []
    for i in range(count):
        draw = np.random.default_rng(i)
        lengths = np.maximum(2, draw.lognormal(np.log(mean) - 0.5, 1.0, tokens // mean)).astype(
            np.int64
        )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = draw.integers(0, 32768, offsets[-1], dtype=np.uint16)
        spec = ShardSpec(
            SourcePart(f"{i}", (f"{i}",), 2**27, "0" * 64), "train", f"train-{i}-{mean}-{mix(i)}"
        )
        specs.append(spec)
        shards[spec] = Shard(f"{i}", ids, offsets)
    source, tokenizer = SimpleNamespace(name="memory"), SimpleNamespace(vocab_size=2**16)
    return SimpleNamespace(
        specs={"train": specs},
        open=shards.__getitem__,
        folder=tmp_path,
        source=source,
        tokenizer=tokenizer,
    )


@pytest.mark.parametrize("packing", ["best_fit", "stream"])
@pytest.mark.parametrize("mean", [1000, 50])
@pytest.mark.parametrize("sequence_len", [2048, 512])
def test_packing_and_gathering_are_fast_enough(
    tmp_path, packing, mean, sequence_len, record_property
):
    rows = Rows(
        in_memory(tmp_path, mean), "train", sequence_len=sequence_len, packing=packing, seed=1
    )
    step, tokens = 32, 0
    begin = time.process_time()  # of this core only, so that neighbours do not count
    for row in range(0, rows.total() // step * step, step):
        found = rows.gather(row, row + step).astype(np.int64)
        tokens += found[:, 1:].size
    rate = tokens / (time.process_time() - begin)
    record_property("tokens_per_second", rate)
    print(f"{packing} T={sequence_len} documents of {mean}: {rate / 1e6:.0f} M tokens/s")
    assert rate > WANTED
