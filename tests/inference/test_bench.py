"""`nanochat.bench`: what is counted, and that texts do not end before they were measured."""

import json
import os
from pathlib import Path

import pytest
import torch
from tests import processes
from tiny_networks import STOPS, TOKENIZER, random_gpt

from nanochat.checkpoint import folder
from nanochat.inference import measure as measuring
from nanochat.inference.engine import Engine
from nanochat.inference.frozen_gpt import FrozenGPT
from nanochat.inference.measure import measure

SMALL = {"prompt_tokens": 5, "decode_tokens": 7, "temperature": 0.0, "repeats": 2}


def test_texts_go_on_whatever_the_model_says(monkeypatch):
    """Here it says its end token after every token; still each of 3 texts gets its 7 tokens, twice
    and once to warm up."""
    written = []

    class Counted(Engine):
        def _leave(self, row, *, keep):
            request, sample = self.live[row]
            written.append((len(request.texts[sample].ids), request.texts[sample].finish_reason))
            super()._leave(row, keep=keep)

    monkeypatch.setattr(measuring, "Engine", Counted)
    gpt = FrozenGPT.of(random_gpt())
    logits, end = gpt.logits, torch.tensor([STOPS[0]])
    gpt.logits = lambda hidden: logits(hidden).index_fill(-1, end, 1000.0)
    found = measure(gpt, TOKENIZER, batches=[3], **SMALL)
    assert written == [(7, "length")] * 3 * 3
    (row,) = found["sweep"]
    assert row["batch"] == 3 and row["tokens_per_second"] == pytest.approx(3 / row["step_seconds"])


def test_what_a_step_reads_is_counted_by_hand():
    """Weights in matrix products, and keys and values of a text half written, each once a step and
    in bytes."""
    # width 32, 4 query heads and 2 key heads of 8; no windows, no value embeddings
    gpt = random_gpt("classic", n_layer=2)
    found = measure(gpt, TOKENIZER, batches=[1], **SMALL)
    block = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 2 * 32 * 128
    vocab = gpt.lm_head.weight.shape[0]
    assert found["weight_bytes"] == 4 * (2 * block + 32 * vocab)
    assert found["kv_read_bytes_per_step"] == 4 * 2 * 2 * 16 * (5 + 7 // 2)
    assert found["sweep"][0]["mbu_percent"] is None or 0 < found["sweep"][0]["mbu_percent"] < 100


@pytest.mark.slow
def test_the_command_measures_a_checkpoint_or_fresh_weights_and_tells_what_is_wrong(tmp_path: Path):
    gpt = random_gpt(sequence_len=128)
    folder.save(
        tmp_path / "talks",
        gpt.state_dict(),
        gpt.config,
        TOKENIZER,
        lineage={"config": {"phase": "sft"}},
    )

    def bench(*words: str):
        return processes.run(["nanochat.bench", "device=cpu", *words], env=dict(os.environ))

    quick = ["prompt_tokens=8", "decode_tokens=4", "repeats=1"]
    done = bench(f"ckpt={tmp_path}/talks", "batches=2", *quick)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["source"] == f"{tmp_path}/talks" and [row["batch"] for row in found["sweep"]] == [
        2
    ]
    fresh = bench("model=d2", "batches=[1,2]", *quick)
    assert fresh.returncode == 0, fresh.stderr
    assert "fresh weights, depth 2, vocabulary 8,192" in fresh.stdout
    for words, reason in (
        ([f"ckpt={tmp_path}/talks", "model=d12"], "model=d12 cannot take effect: ckpt="),
        (["batches=[0]"], "batches=[0] must be a whole number from 1 up, or a list"),
        (["batches=many"], "batches="),
        (["decode_tokens=1"], "decode_tokens=1 must be at least 2"),
        (["prompt_tokens=2048"], "lower one of them"),
        (["vocab_size=100"], "vocab_size=100 must be a whole number from 265"),
    ):
        wrong = bench(*words)
        assert wrong.returncode == 2 and reason in wrong.stderr and wrong.stderr.count("\n") == 1, (
            wrong.stderr
        )
