"""Tensor names, order and shapes (facts sheet 1.2), windows (1.5), and how a network is filled
(1.7)."""

import json
import math

import pytest
import torch
from plain_gpt import FACTS, Plain, arch

from nanochat.gpt import GPT, GPTConfig, build_arch
from nanochat.interop.eras import preset


def expected_tensors(
    era: str, n: int, H: int, G: int, d: int, Vp: int, V: int
) -> list[tuple[str, tuple[int, ...]]]:
    D = d // H
    gate = FACTS[era]["gate"]
    valued = [i for i in range(n) if gate and i % 2 == (n - 1) % 2]
    result: list[tuple[str, tuple[int, ...]]] = []
    if FACTS[era]["lambdas"]:
        result += [("resid_lambdas", (n,)), ("x0_lambdas", (n,))]
    if FACTS[era]["smear"]:
        result += [("smear_lambda", (1,)), ("backout_lambda", (1,))]
    result.append(("transformer.wte.weight", (Vp, d)))
    for i in range(n):
        h = f"transformer.h.{i}."
        result += [
            (h + "attn.c_q.weight", (H * D, d)),
            (h + "attn.c_k.weight", (G * D, d)),
            (h + "attn.c_v.weight", (G * D, d)),
        ]
        result.append((h + "attn.c_proj.weight", (d, d)))
        if i in valued:
            result.append((h + "attn.ve_gate.weight", (G, gate[0])))
        result += [(h + "mlp.c_fc.weight", (4 * d, d)), (h + "mlp.c_proj.weight", (d, 4 * d))]
    result.append(("lm_head.weight", (Vp, d)))
    if FACTS[era]["smear"]:
        result.append(("smear_gate.weight", (1, 24)))
    return result + [(f"value_embeds.{i}.weight", (Vp, G * D)) for i in valued]


@pytest.mark.parametrize("era", ["E0", "E1", "E2", "E4", "E5", "E6"])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_state_dict_names_order_and_shapes(era, n):
    gpt = GPT.build(Plain(era, T=64, V=100, n=n, H=4, G=2, d=64).config())
    state = gpt.state_dict()
    assert [(name, tuple(t.shape)) for name, t in state.items()] == expected_tensors(
        era, n, 4, 2, 64, 128, 100
    )
    assert {t.dtype for t in state.values()} == {torch.float32}


def test_bigram_era_has_two_tensors_more():
    gpt = GPT.build(Plain("E3", T=64, V=128, n=4, H=4, G=2, d=64).config())
    shapes = {name: tuple(t.shape) for name, t in gpt.state_dict().items()}
    assert shapes.pop("bigram_embed.embed.weight") == (5 * 128, 64)
    assert shapes.pop("bigram_lambdas") == (4,)
    assert shapes == dict(expected_tensors("E2", 4, 4, 2, 64, 128, 128))


# --- windows ---
# ------------------


@pytest.mark.parametrize(
    ("era", "T", "short"),
    [
        ("E6", 2048, 512),
        ("E6", 512, 128),
        ("E6", 256, 128),
        ("E6", 1024, 256),
        ("E6", 2052, 640),
        ("E6", 100, 128),
        ("E5", 2048, 768),
        ("E1", 2048, 1024),
        ("E4", 512, 256),
    ],
)
def test_three_short_windows_then_a_long_one(era, T, short):
    assert GPTConfig(T, 64, 12, 2, 2, 64, arch(era)).windows == (short, short, short, T) * 3
    # the last is always L
    assert GPTConfig(T, 64, 6, 2, 2, 64, arch(era)).windows == (short, short, short, T, short, T)
    assert GPTConfig(T, 64, 2, 2, 2, 64, arch(era)).windows == (short, T)
    assert GPTConfig(T, 64, 1, 2, 2, 64, arch(era)).windows == (T,)


def test_classic_windows_have_no_limit():
    assert GPTConfig(2048, 64, 3, 2, 2, 64, arch("E0")).windows == (None, None, None)


def test_window_letters_may_be_small():
    assert GPTConfig(2048, 64, 4, 2, 2, 64, arch("E6", window_pattern="sl")).windows == (
        512,
        2048,
        512,
        2048,
    )


@pytest.mark.parametrize("pattern", ["", "SSX", "S L"])
def test_other_window_letters_are_refused(pattern):
    with pytest.raises(ValueError, match="window_pattern"):
        arch("E6", window_pattern=pattern)


def test_value_embeddings_on_every_other_layer_from_the_last():
    assert [GPTConfig(64, 64, n, 2, 2, 64, arch("E6")).value_layers for n in (1, 2, 5, 6)] == [
        (0,),
        (1,),
        (0, 2, 4),
        (1, 3, 5),
    ]


# --- filling ---
# ------------------

D_MODEL, LAYERS, VOCAB = 256, 6, 1000  # large enough that 5 standard errors are a few per cent


@pytest.fixture(scope="module")
def modern() -> dict[str, torch.Tensor]:
    return GPT.build(GPTConfig(64, VOCAB, LAYERS, 4, 2, D_MODEL, arch("E6"))).state_dict()


@pytest.fixture(scope="module")
def classic() -> dict[str, torch.Tensor]:
    return GPT.build(GPTConfig(64, VOCAB, LAYERS, 4, 2, D_MODEL, arch("E0"))).state_dict()


def is_normal(t: torch.Tensor, std: float) -> None:
    """Mean and standard deviation within 5 standard errors, tails as wide as a normal's."""
    count = t.numel()
    assert abs(t.mean().item()) < 5 * std / count**0.5
    assert abs(t.std().item() - std) < 5 * std / (2 * count) ** 0.5
    assert t.abs().max().item() > 3 * std  # a uniform draw of this std ends at 1.73
    assert (t.abs() < std).double().mean().item() == pytest.approx(
        0.6827, abs=5 * (0.22 / count) ** 0.5
    )


def is_uniform(t: torch.Tensor, low: float, high: float) -> None:
    count, width = t.numel(), high - low
    assert t.min().item() >= low
    assert t.max().item() <= high
    assert abs(t.mean().item() - (low + high) / 2) < 5 * width / (12 * count) ** 0.5
    # the largest of `count` draws misses the end by about width / count
    assert high - t.max().item() < 12 * width / count
    assert t.min().item() - low < 12 * width / count


def test_modern_init(modern):
    a = math.sqrt(3 / D_MODEL)
    is_normal(modern["transformer.wte.weight"], 0.8)
    is_normal(modern["lm_head.weight"], 0.001)
    for i in range(LAYERS):
        h = f"transformer.h.{i}."
        for name in ("c_q", "c_k", "c_v"):
            is_uniform(modern[h + f"attn.{name}.weight"], -a, a)
        is_uniform(modern[h + "mlp.c_fc.weight"], -0.4 * a, 0.4 * a)
        assert not modern[h + "attn.c_proj.weight"].any()
        assert not modern[h + "mlp.c_proj.weight"].any()
        assert modern["resid_lambdas"][i].item() == pytest.approx(1.15 - 0.10 * i / (LAYERS - 1))
        assert modern["x0_lambdas"][i].item() == pytest.approx(0.20 - 0.15 * i / (LAYERS - 1))
    for i in (1, 3, 5):
        is_uniform(modern[f"value_embeds.{i}.weight"], -a, a)
        is_uniform(modern[f"transformer.h.{i}.attn.ve_gate.weight"], 0.0, 0.02)
    is_uniform(modern["smear_gate.weight"], 0.0, 0.02)
    assert modern["smear_lambda"].tolist() == [0.0]
    assert modern["backout_lambda"].tolist() == pytest.approx([0.2])


def test_classic_init(classic):
    is_normal(classic["transformer.wte.weight"], 1.0)
    assert not classic["lm_head.weight"].any()
    for i in range(LAYERS):
        h = f"transformer.h.{i}."
        is_normal(classic[h + "attn.c_q.weight"], 1 / 16)  # 256 in, 256 out
        is_normal(classic[h + "attn.c_k.weight"], 1 / 16 * math.sqrt(1 / 2))  # 256 in, 128 out: GQA
        is_normal(classic[h + "attn.c_v.weight"], 1 / 16 * math.sqrt(1 / 2))
        is_normal(classic[h + "mlp.c_fc.weight"], 1 / 16)
        assert not classic[h + "attn.c_proj.weight"].any()
        assert not classic[h + "mlp.c_proj.weight"].any()


def test_one_layer_has_the_first_lambdas():
    state = GPT.build(GPTConfig(64, 64, 1, 2, 2, 64, arch("E6"))).state_dict()
    assert state["resid_lambdas"].tolist() == pytest.approx([1.15])
    assert state["x0_lambdas"].tolist() == pytest.approx([0.20])


def test_zero_gate_of_the_early_eras_is_a_factor_of_one():
    """2 * sigmoid(0) = 1: a value embedding starts as it is."""
    state = GPT.build(Plain("E2", T=64, V=64, n=3, H=2, G=2, d=64).config()).state_dict()
    assert not state["transformer.h.2.attn.ve_gate.weight"].any()
    assert state["resid_lambdas"].tolist() == [1.0] * 3
    assert not state["x0_lambdas"].any()


def test_bigram_table_starts_at_zero_and_its_lambdas_at_a_tenth():
    state = GPT.build(Plain("E3", T=64, V=64, n=3, H=2, G=2, d=64).config()).state_dict()
    assert not state["bigram_embed.embed.weight"].any()
    assert state["bigram_lambdas"].tolist() == pytest.approx([0.1] * 3)
    assert state["x0_lambdas"].tolist() == pytest.approx([0.1] * 3)


def test_modern_draws_in_the_recorded_order():
    """wte, lm_head, per block c_q c_k c_v c_fc, then smear_gate, value embeddings, value gates:
    replayed here."""
    n, d, kv = 3, 64, 32
    state = GPT.build(GPTConfig(64, 100, n, 4, 2, d, arch("E6")), seed=42).state_dict()
    draw, a = torch.Generator().manual_seed(42), math.sqrt(3 / d)
    same = {"rtol": 1e-6, "atol": 0}  # N(0, 1) times std or N(0, std): one rounding
    for name, std in (("transformer.wte.weight", 0.8), ("lm_head.weight", 0.001)):
        torch.testing.assert_close(
            state[name], torch.empty(128, d).normal_(0, std, generator=draw), **same
        )
    order = [
        (f"transformer.h.{i}.{m}.weight", (rows, d), -a * f, a * f)
        for i in range(n)
        for m, rows, f in (
            ("attn.c_q", d, 1),
            ("attn.c_k", kv, 1),
            ("attn.c_v", kv, 1),
            ("mlp.c_fc", 4 * d, 0.4),
        )
    ]
    order.append(("smear_gate.weight", (1, 24), 0, 0.02))
    order += [(f"value_embeds.{i}.weight", (128, kv), -a, a) for i in (0, 2)]
    order += [(f"transformer.h.{i}.attn.ve_gate.weight", (2, 12), 0, 0.02) for i in (0, 2)]
    for name, shape, low, high in order:
        torch.testing.assert_close(
            state[name], torch.empty(shape).uniform_(low, high, generator=draw), **same
        )


def test_classic_draws_the_projections_too_before_they_are_zero():
    """Module by module, as nanochat's first generation: so one seed gives its weights."""
    n, d = 3, 64
    state = GPT.build(GPTConfig(64, 100, n, 4, 4, d, arch("E0")), seed=42).state_dict()
    draw, same = torch.Generator().manual_seed(42), {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(
        state["transformer.wte.weight"], torch.empty(128, d).normal_(0, 1, generator=draw), **same
    )
    for i in range(n):
        for name, shape in (
            ("attn.c_q", (d, d)),
            ("attn.c_k", (d, d)),
            ("attn.c_v", (d, d)),
            ("attn.c_proj", (d, d)),
            ("mlp.c_fc", (4 * d, d)),
            ("mlp.c_proj", (d, 4 * d)),
        ):
            drawn = torch.empty(shape).normal_(0, 1 / math.sqrt(d), generator=draw)
            if "proj" not in name:
                torch.testing.assert_close(state[f"transformer.h.{i}.{name}.weight"], drawn, **same)


def test_lambdas_are_nanochats_to_the_last_bit():
    state = GPT.build(GPTConfig(64, 64, 9, 2, 2, 64, arch("E6"))).state_dict()
    assert torch.equal(
        state["resid_lambdas"], torch.tensor([1.15 - 0.10 * i / 8 for i in range(9)])
    )
    assert torch.equal(state["x0_lambdas"], torch.tensor([0.20 - 0.15 * i / 8 for i in range(9)]))


def test_e5_starts_as_at_its_commit():
    """fc5a32a: a smaller embedding, half the first matrix of the MLP, gates a little above neutral
    (experiments/parity)."""
    state = GPT.build(GPTConfig(64, VOCAB, 4, 4, 2, D_MODEL, build_arch(preset("e5")))).state_dict()
    a = math.sqrt(3 / D_MODEL)
    is_normal(state["transformer.wte.weight"], 0.8)
    is_uniform(state["transformer.h.1.mlp.c_fc.weight"], -0.5 * a, 0.5 * a)
    gates = torch.cat([state[f"transformer.h.{i}.attn.ve_gate.weight"] for i in (1, 3)])
    assert gates.min() >= 0 and 0.01 < gates.max() <= 0.02
    assert state["resid_lambdas"].tolist() == [1.0] * 4
    assert state["x0_lambdas"].tolist() == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("era", FACTS)
def test_init_leaves_no_parameter_as_it_was(era):
    gpt = GPT(Plain(era, T=64, V=100, n=4, H=4, G=2, d=64).config())
    with torch.no_grad():
        for p in gpt.parameters():
            p.fill_(math.nan)
    gpt.init_weights(torch.Generator().manual_seed(0))
    assert [name for name, p in gpt.named_parameters() if not p.isfinite().all()] == []


def test_a_parameter_that_init_forgets_is_an_error():
    gpt = GPT(Plain("E6", T=64, V=100, n=2, H=4, G=2, d=64).config())
    gpt.transformer.h[1].mlp.new_weight = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(AssertionError, match="new_weight"):
        gpt.init_weights(torch.Generator().manual_seed(0))


def test_a_seed_is_a_network():
    config = Plain("E6", T=64, V=100, n=2, H=4, G=2, d=64).config()
    a, b, c = (GPT.build(config, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["transformer.wte.weight"], c["transformer.wte.weight"])


# --- sizes that cannot be
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_embd": 66, "n_head": 4}, "n_head"),
        ({"n_embd": 60, "n_head": 4}, "odd"),
        ({"n_head": 4, "n_kv_head": 3}, "n_kv_head"),
        ({"n_layer": 0}, "n_layer"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"n_embd": 16, "n_head": 2, "n_kv_head": 2}, "smear"),
        ({"n_embd": 8, "n_head": 2, "n_kv_head": 2}, "gate"),
    ],
)
def test_sizes_that_cannot_be_built_are_one_clear_line(sizes, message):
    with pytest.raises(ValueError, match=message) as caught:
        GPTConfig(
            **{
                **{
                    "sequence_len": 64,
                    "vocab_size": 64,
                    "n_layer": 2,
                    "n_head": 4,
                    "n_kv_head": 2,
                    "n_embd": 64,
                    "arch": arch("E6"),
                },
                **sizes,
            }
        )
    assert "\n" not in str(caught.value)


def test_an_unknown_switch_is_named():
    with pytest.raises(ValueError, match=r"arch\.softcup"):
        arch("E6", softcup=15)


@pytest.mark.parametrize("era", FACTS)
def test_config_survives_json(era):
    config = Plain(era, T=64, V=100, n=2, H=4, G=2, d=64).config()
    assert GPTConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


# --- every era trains
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", FACTS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_era_builds_and_runs_forward_and_backward(era, n):
    """From its own init, where the zero projections stop gradients of what is before them: only
    these may be zero."""
    gpt = GPT.build(Plain(era, T=32, V=100, n=n, H=4, G=2, d=64).config())
    idx = torch.randint(100, (2, 32), generator=torch.Generator().manual_seed(0))
    loss = gpt.loss_sum(idx[:, :-1], idx[:, 1:])
    assert loss.isfinite()
    loss.backward()
    for name, p in gpt.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert gpt.lm_head.weight.grad.abs().max() > 0
