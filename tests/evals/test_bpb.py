"""Bits per byte against a plain sum over tokens (facts sheet 6.1)."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from nanochat.evals.bpb import BitsPerByte, BitsPerByteMetric, bits_per_byte, decoded_bytes
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer.tokenizer import BPETokenizer

V = 70


@pytest.fixture(scope="module")
def gpt() -> GPT:
    gpt = GPT.build(GPTConfig(32, V, 2, 2, 2, 32))
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return gpt


@pytest.fixture
def token_bytes() -> np.ndarray:
    lengths = np.random.default_rng(0).integers(1, 9, V)
    lengths[61:] = 0  # the last nine are special
    return lengths.astype(np.int32)


def batches(*sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    result = []
    for B, T in sizes:
        targets = torch.randint(V, (B, T), generator=g)
        targets[torch.rand(B, T, generator=g) < 0.2] = -1
        result.append({"idx": torch.randint(V, (B, T), generator=g), "targets": targets})
    return result


def plain(gpt, given, lengths):
    nats, size, tokens = 0.0, 0, 0
    for batch in given:
        for idx, targets in zip(batch["idx"], batch["targets"], strict=True):
            logits = gpt(idx[None])[0].double()
            for t, target in enumerate(targets.tolist()):
                if target >= 0 and lengths[target] > 0:
                    nats += (torch.logsumexp(logits[t], 0) - logits[t, target]).item()
                    size += int(lengths[target])
                    tokens += 1
    return nats / (math.log(2) * size), nats / tokens, tokens


def test_equals_a_plain_sum_over_tokens(gpt, token_bytes):
    given = batches((2, 20), (3, 32), (1, 5))
    result = bits_per_byte(gpt, given, token_bytes)
    bpb, loss, tokens = plain(gpt, given, token_bytes)
    assert result["bpb"] == pytest.approx(bpb, rel=1e-5)  # fp32 losses
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["tokens"] == tokens


def test_specials_and_ignored_targets_do_not_count(gpt, token_bytes):
    """A target that is replaced by a special token or by -1 leaves the same number."""
    given = batches((2, 20))
    targets = given[0]["targets"]
    none = targets.clone()
    none[:, ::3] = -1
    special = targets.clone()
    special[:, ::3] = 65
    results = [
        bits_per_byte(gpt, [{"idx": given[0]["idx"], "targets": t}], token_bytes)
        for t in (none, special)
    ]
    assert results[0] == pytest.approx(results[1])
    assert results[0] != pytest.approx(bits_per_byte(gpt, given, token_bytes))


def test_does_not_depend_on_how_tokens_are_batched_and_padded_to_the_last_bit(gpt, token_bytes):
    whole = batches((6, 16))
    cuts = {1: range(7), 3: (0, 1, 4, 6)}
    found = [bits_per_byte(gpt, whole, token_bytes)]
    for padding, ends in cuts.items():
        more = {"idx": torch.zeros(6, padding).long(), "targets": torch.full((6, padding), -1)}
        padded = {name: torch.cat((whole[0][name], more[name]), 1) for name in more}
        parts = [{k: v[a:b] for k, v in padded.items()} for a, b in pairwise(ends)]
        found.append(bits_per_byte(gpt, parts, token_bytes))
    assert found[0] == found[1] == found[2]


def test_sums_are_those_of_the_losses_in_any_order(token_bytes):
    """Losses over nine orders of magnitude: the exact sum, each loss rounded to 2**-30 nats."""
    g = torch.Generator().manual_seed(0)
    losses = 10 ** (torch.rand(64, 50, generator=g) * 9 - 7)
    targets = torch.randint(61, (64, 50), generator=g)
    found = []
    for rows, order in ((64, torch.arange(64)), (1, torch.randperm(64, generator=g)), (7, ...)):
        metric = BitsPerByteMetric(token_bytes)
        for some in zip(losses[order].split(rows), targets[order].split(rows), strict=True):
            metric.update(*some)
        found.append(metric.compute())
    assert found[0] == found[1] == found[2]
    units = sum(round(Fraction(x) * 2**30) for x in losses.flatten().tolist())
    assert found[0]["loss"] == float(Fraction(units, 2**30)) / 3200
    plainly = math.fsum(losses.flatten().tolist())
    assert found[0]["loss"] == pytest.approx(plainly / 3200, rel=1e-9)
    losses[3, 4] = math.nan
    metric.update(losses, targets)
    assert math.isnan(metric.compute()["bpb"])


def test_both_definitions_of_the_bytes_of_a_token():
    """Facts sheet 3.3: a raw byte from 0x80 on counted 3, "é" as one token 2; specials 0."""
    tokenizer = BPETokenizer([(0xC3, 0xA9), (0x41, 0xC3)])
    raw, decoded = tokenizer.token_bytes, decoded_bytes(tokenizer)
    assert raw[:258].tolist() == [1] * 256 + [2, 2] and not decoded[258:].any()
    assert decoded[:258].tolist() == [1] * 128 + [3] * 128 + [2, 4]
    names = [BitsPerByte(split=s, token_bytes=t).lower_is_better for s, t in SPLITS]
    assert names == [("bpb", "loss"), ("train_bpb", "train_loss"), ("bpb_decoded", "loss")]


SPLITS = (("val", "raw"), ("train", "raw"), ("val", "decoded"))


def test_a_uniform_model_has_ln_v_nats_a_token(token_bytes):
    gpt = GPT.build(GPTConfig(32, V, 2, 2, 2, 32))
    with torch.no_grad():
        gpt.lm_head.weight.zero_()
    given = batches((2, 32))
    counted = [n for n in token_bytes[given[0]["targets"][given[0]["targets"] >= 0].numpy()] if n]
    result = bits_per_byte(gpt, given, token_bytes)
    assert result["loss"] == pytest.approx(math.log(V), rel=1e-6)
    assert result["bpb"] == pytest.approx(math.log2(V) * len(counted) / sum(counted), rel=1e-6)


def test_no_gradients_are_kept(gpt, token_bytes):
    bits_per_byte(gpt, batches((1, 8)), token_bytes)
    assert all(p.grad is None for p in gpt.parameters())


@pytest.mark.parametrize("given", ["nothing", "all ignored", "specials only"])
def test_nothing_that_counts_is_one_clear_line(gpt, token_bytes, given):
    made = batches((2, 8))
    if given == "nothing":
        made = []
    else:
        made[0]["targets"].fill_(-1 if given == "all ignored" else 66)
    with pytest.raises(ValueError, match="bits per byte") as caught:
        bits_per_byte(gpt, made, token_bytes)
    assert "\n" not in str(caught.value)
