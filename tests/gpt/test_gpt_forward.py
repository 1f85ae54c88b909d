"""The network against the plain version of `plain_gpt.py`, era by era, with every parameter
random."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain_gpt import FACTS, Plain, arch, plain_logits, random_gpt, rms, tokens

from nanochat.gpt import GPT, GPTConfig
from nanochat.gpt.elementary import norm, rotate

# fp32 keeps 24 bits; five layers of sums of about 160 terms leave 1e-5 to 2e-5 of logits up to 15
# (3 seeds, all eras)
FP32 = {"rtol": 0, "atol": 4e-5}


def small(era: str, **facts) -> Plain:
    """GQA, a padded vocabulary (100 to 128), S layers shorter than the text, value embeddings on 0,
    2, 4."""
    return Plain(era, T=160, V=100, n=5, H=4, G=2, d=64, facts=facts)


def weights(gpt: GPT) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in gpt.named_parameters()}


@pytest.mark.parametrize("era", FACTS)
def test_logits_equal_the_plain_version(era):
    p = small(era)
    gpt, idx = random_gpt(p), tokens(p.V, 2, p.T)
    with torch.no_grad():
        logits = gpt(idx)
    assert logits.shape == (2, p.T, p.V)
    assert logits.dtype == torch.float32
    true = torch.stack([plain_logits(p, weights(gpt), row.tolist()) for row in idx])
    assert true.abs().max() > 10  # the cap of 15 is at work
    torch.testing.assert_close(logits.double(), true, **FP32)


@pytest.mark.parametrize(
    ("era", "wrong"),
    [
        ("E0", {"base": 1.2e4}),
        ("E0", {"cap": 15.2}),
        ("E0", {"qk": 1.02}),
        ("E0", {"rope_bf16": False}),
        ("E0", {"short": (2, 1)}),
        ("E2", {"gate": (32, 2.05)}),
        ("E2", {"short": (4, 1)}),
        ("E6", {"base": 1.2e5}),
        ("E6", {"qk": 1.15}),
        ("E6", {"gate": (12, 2.9)}),
        ("E6", {"short": (3, 1)}),
    ],
    ids=str,
)
def test_another_number_gives_other_logits(era, wrong):
    """The comparison above would notice: each number that tells eras apart moves logits by 100
    times its tolerance."""
    p = small(era)
    gpt = random_gpt(p)
    row = tokens(p.V, 1, p.T)[0].tolist()
    difference = (
        (plain_logits(p, weights(gpt), row) - plain_logits(small(era, **wrong), weights(gpt), row))
        .abs()
        .max()
    )
    assert difference > 100 * FP32["atol"]


@pytest.mark.parametrize("era", ["E0", "E3", "E6"])
def test_gradients_equal_those_of_the_plain_version(era):
    p = Plain(era, T=150, V=100, n=3, H=4, G=2, d=64)
    gpt, idx, targets = random_gpt(p), tokens(p.V, 1, p.T), tokens(p.V, 1, p.T, seed=2)
    gpt.loss_sum(idx, targets).backward()
    w = {name: value.double().requires_grad_() for name, value in weights(gpt).items()}
    F.cross_entropy(plain_logits(p, w, idx[0].tolist()), targets[0], reduction="sum").backward()
    for name, parameter in gpt.named_parameters():
        true = w[name].grad
        assert true.abs().max() > 0, f"{name} takes no part"
        scale = true.abs().max().item()
        # fp32: sums over 150 tokens that partly cancel, relative to the largest entry of each
        # gradient
        torch.testing.assert_close(
            parameter.grad.double(),
            true,
            rtol=0,
            atol=3e-5 * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("era", ["E0", "E1", "E6"])
def test_text_longer_than_the_training_length_equals_the_plain_version(era):
    """E0 sees all of it; from E1 on an L layer sees itself and `sequence_len` tokens before, and
    RoPE goes on."""
    p = Plain(era, T=64, V=100, n=4, H=2, G=1, d=64)
    gpt, idx = random_gpt(p), tokens(p.V, 1, 160)
    with torch.no_grad():
        logits = gpt(idx)[0]
    torch.testing.assert_close(
        logits.double(), plain_logits(p, weights(gpt), idx[0].tolist()), **FP32
    )


@pytest.mark.parametrize("era", FACTS)
def test_one_token_is_enough(era):
    p = small(era)
    gpt, idx = random_gpt(p), tokens(p.V, 2, 9)
    with torch.no_grad():
        torch.testing.assert_close(gpt(idx[:, :1]), gpt(idx)[:, :1], **FP32)


@pytest.mark.parametrize("era", ["E0", "E6"])
def test_the_future_does_not_change_the_past(era):
    p = small(era)
    gpt, idx = random_gpt(p), tokens(p.V, 1, p.T)
    other = idx.clone()
    other[:, 100:] = (other[:, 100:] + 1) % p.V
    with torch.no_grad():
        a, b = gpt(idx), gpt(other)
    torch.testing.assert_close(a[:, :100], b[:, :100], **FP32)
    assert (a[:, 100:] - b[:, 100:]).abs().max() > 1


def test_grouped_heads_equal_repeated_key_heads():
    """GQA is full attention with each key/value head written down once for every query head of its
    run of H // G."""
    few = Plain("E6", T=40, V=64, n=3, H=4, G=2, d=64)
    many = Plain("E6", T=40, V=64, n=3, H=4, G=4, d=64)
    grouped, full = random_gpt(few), GPT.build(many.config(), seed=None)
    state = grouped.state_dict()
    for name, value in full.state_dict().items():
        if value.shape != state[name].shape:
            if name.startswith("value_embeds"):
                state[name] = state[name].view(-1, 2, 16).repeat_interleave(2, 1).flatten(1)
            else:
                rows = state[name].size(0) // 2  # rows of one key head
                state[name] = state[name].view(2, rows, -1).repeat_interleave(2, 0).flatten(0, 1)
    full.load_state_dict(state, strict=True)
    idx = tokens(64, 2, 40)
    with torch.no_grad():
        torch.testing.assert_close(grouped(idx), full(idx), **FP32)


# --- loss of the network
# ------------------------------------------------------------------------------------------


def test_losses_are_the_cross_entropy_of_the_logits():
    p = small("E6")
    gpt, idx, targets = random_gpt(p), tokens(p.V, 2, 80), tokens(p.V, 2, 80, seed=2)
    targets[0, 10:30] = -1
    with torch.no_grad():
        each = gpt.losses(idx, targets)
        true = F.cross_entropy(
            gpt(idx).flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        ).view(2, 80)
        torch.testing.assert_close(each, true, rtol=1e-5, atol=1e-5)  # fp32 sums in another order
        assert each[0, 10:30].eq(0).all()
        torch.testing.assert_close(gpt.loss_sum(idx, targets), each.sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("V", [1000, 4096])
def test_classic_starts_at_exactly_ln_v(V):
    gpt = GPT.build(GPTConfig(64, V, 2, 2, 2, 64, arch("E0")))
    losses = gpt.losses(tokens(V, 2, 64), tokens(V, 2, 64, seed=2))
    # all logits are 0: only the rounding of one fp32 logarithm is left
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(V)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("V", [1000, 4096])
def test_modern_starts_close_to_ln_v(V):
    gpt = GPT.build(GPTConfig(64, V, 2, 2, 2, 128, arch("E6")))
    losses = gpt.losses(tokens(V, 4, 64), tokens(V, 4, 64, seed=2))
    # a head of std 0.001 gives logits of std 0.001 * sqrt(128) = 0.011; the mean of 256 of them is
    # ten times smaller
    assert losses.mean().item() == pytest.approx(math.log(V), abs=0.005)
    assert losses.std() > 1e-3


# --- elementary operations
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)])
def test_norm_has_the_eps_of_fp32(dtype, tolerance):
    """At x = 1e-4 the mean square is 1e-8, a twelfth of eps = 1.19e-7: any other eps gives another
    number."""
    x = torch.full((3, 16), 1e-4).to(dtype)
    true = x.double() / (x.double().square().mean(-1, keepdim=True) + 1.1920929e-07).sqrt()
    got = norm(x)
    assert got.dtype == dtype
    # rounding of the result's dtype
    torch.testing.assert_close(got.double(), true, rtol=tolerance, atol=0)


def test_norm_has_no_gain_and_works_on_the_last_axis():
    x = torch.randn(2, 5, 7, 8, generator=torch.Generator().manual_seed(0))
    # fp32 rounding
    torch.testing.assert_close(norm(x).double(), rms(x.double()), rtol=1e-6, atol=1e-7)


def test_rope_turns_by_minus_the_angle():
    a = torch.tensor(0.5)
    cos, sin = a.cos().view(1, 1, 1, 1), a.sin().view(1, 1, 1, 1)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert rotate(first.view(1, 1, 1, 2), cos, sin).flatten().tolist() == pytest.approx(
        [math.cos(0.5), -math.sin(0.5)]
    )
    assert rotate(second.view(1, 1, 1, 2), cos, sin).flatten().tolist() == pytest.approx(
        [math.sin(0.5), math.cos(0.5)]
    )


@pytest.mark.parametrize(("era", "base"), [("E0", 1e4), ("E4", 1e4), ("E5", 1e5), ("E6", 1e5)])
def test_rope_table_of_the_era(era, base):
    gpt = GPT.build(Plain(era, T=300, V=64, n=2, H=2, G=2, d=64).config())
    angle = torch.arange(300).double()[:, None] * torch.tensor(
        [base ** (-2 * j / 32) for j in range(16)], dtype=torch.float64
    )
    classic = era == "E0"
    assert gpt.cos.dtype == gpt.sin.dtype == (torch.bfloat16 if classic else torch.float32)
    # bf16 keeps 8 bits of a number up to 1; an fp32 angle of up to 300 rad is off by up to 300 *
    # 2**-24 = 2e-5
    tolerance = 2**-8 if classic else 3e-5
    torch.testing.assert_close(gpt.cos[0, :300, 0].double(), angle.cos(), rtol=0, atol=tolerance)
    torch.testing.assert_close(gpt.sin[0, :300, 0].double(), angle.sin(), rtol=0, atol=tolerance)
    assert not {"cos", "sin"} & set(gpt.state_dict())


@pytest.mark.parametrize("era", ["E0", "E6"])
def test_bf16_compute_stays_close_to_fp32(era):
    p = small(era)
    gpt = random_gpt(p)
    idx = tokens(p.V, 1, p.T)
    exact = gpt(idx).detach()
    gpt.prepare(compute_dtype=torch.bfloat16)
    rounded = gpt(idx).detach()
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() > 1e-3  # it did compute in bf16
    # 2**-8 relative per operation, some twenty of them on logits of about 8
    assert (rounded - exact).abs().mean() < 0.2
