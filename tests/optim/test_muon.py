"""Muon against a textbook version, matrix by matrix."""

import sys

import pytest
import torch
from plain_optim import PlainClassicMuon, PlainModernMuon

from nanochat.optim import GroupedOptimizer, muon

# square, tall, wide, gates; two of one shape
SHAPES = [(24, 24), (96, 24), (24, 96), (2, 12), (1, 12), (40, 39), (24, 24)]


def problem(seed=0, shapes=SHAPES, steps=6):
    g = torch.Generator().manual_seed(seed)
    weights = [0.5 * torch.randn(s, generator=g) for s in shapes]
    grads = [
        [torch.randn(s, generator=g) * 10 ** (-i) for i, s in enumerate(shapes)]
        for _ in range(steps)
    ]  # scales must not matter
    return weights, grads


def run(weights, grads, group, schedule=lambda step: {}):
    """Weights after every step, [step][matrix]; the optimizer."""
    params = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = GroupedOptimizer([{"params": params, "rule": "muon", **group}])
    history = []
    for step, gs in enumerate(grads):
        optimizer.param_groups[0].update(schedule(step))
        for p, g in zip(params, gs, strict=True):
            p.grad = g.clone()
        optimizer.step()
        history.append([p.detach().clone() for p in params])
    return history, optimizer


def changing(step):
    """Rate, momentum and decay as a schedule would change them."""
    return {
        "lr": 0.02 * (1 - 0.1 * step),
        "momentum": 0.85 + 0.02 * step,
        "weight_decay": 0.5 - 0.05 * step,
    }


# the plain version is float64: fp32 keeps 6e-8, five rounds multiply small singular values by up to
# 8 each
TIGHT = {"rtol": 0, "atol": 5e-6}


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_modern_equals_the_textbook_over_several_steps(decay):
    weights, grads = problem()
    history, _ = run(
        weights,
        grads,
        {"lr": 0.02, "momentum": 0.95, "beta2": 0.9, "weight_decay": decay, "ns_dtype": "float32"},
    )
    for i, w in enumerate(weights):
        plain, W = PlainModernMuon(w.shape), w.double()
        for step, gs in enumerate(grads):
            W = plain.step(W, gs[i].double(), 0.02, 0.95, decay)
            torch.testing.assert_close(
                history[step][i].double(),
                W,
                **TIGHT,
                msg=lambda m, s=step, k=i: f"step {s}, {SHAPES[k]}: {m}",
            )


def test_modern_follows_a_schedule_as_the_textbook_does():
    weights, grads = problem(seed=1)
    history, _ = run(weights, grads, {"lr": 0.02, "ns_dtype": "float32"}, changing)
    for i, w in enumerate(weights):
        plain, W = PlainModernMuon(w.shape), w.double()
        for step, gs in enumerate(grads):
            now = changing(step)
            W = plain.step(W, gs[i].double(), now["lr"], now["momentum"], now["weight_decay"])
        torch.testing.assert_close(history[-1][i].double(), W, **TIGHT)


def test_classic_equals_the_textbook_over_several_steps():
    weights, grads = problem(seed=2)
    history, _ = run(
        weights, grads, {"lr": 0.02, "momentum": 0.95, "variant": "classic", "ns_dtype": "float32"}
    )
    for i, w in enumerate(weights):
        plain, W = PlainClassicMuon(w.shape, torch.float64), w.double()
        for step, gs in enumerate(grads):
            W = plain.step(W, gs[i].double(), 0.02, 0.95)
            torch.testing.assert_close(
                history[step][i].double(),
                W,
                **TIGHT,
                msg=lambda m, s=step, k=i: f"step {s}, {SHAPES[k]}: {m}",
            )


def test_classic_in_bf16_is_the_textbook_in_bf16():
    """As the original computes it. One step of lr 1, so that the update itself is compared."""
    weights, grads = problem(seed=3, steps=1)
    history, _ = run(weights, grads, {"lr": 1.0, "variant": "classic", "ns_dtype": "bfloat16"})
    for i, w in enumerate(weights):
        update = w.double() - history[0][i].double()
        true = w.double() - PlainClassicMuon(w.shape, torch.bfloat16).step(
            w.double(), grads[0][i].double(), 1.0, 0.95
        )
        # bf16 keeps 8 bits; fused and separate products round differently, five rounds of slope up
        # to 3.4
        assert (update - true).norm() < 0.05 * true.norm(), SHAPES[i]


def test_in_bf16_rows_are_equilibrated_by_a_factor_of_fp32():
    """Norms and their ratio in fp32, rounded once, as nanochat; in bf16 throughout it would be
    three roundings."""
    g = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = g.float().norm(dim=(-2, -1), keepdim=True) / 7**0.5
    x = g * (whole / g.float().norm(dim=-1, keepdim=True)).bfloat16()
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    assert torch.equal(muon.orthogonalize_modern(g, 0), x)


def test_modern_in_bf16_is_near_modern_in_fp32():
    weights, grads = problem(seed=3, steps=1)
    updates = [
        [
            w - after
            for w, after in zip(
                weights, run(weights, grads, {"lr": 1.0, "ns_dtype": dtype})[0][0], strict=True
            )
        ]
        for dtype in ("float32", "bfloat16")
    ]
    for exact, rounded in zip(*updates, strict=True):
        assert 0 < (exact - rounded).norm() < 0.1 * exact.norm()  # 8 bits through five rounds


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_classic_updates_are_nearly_orthogonal(shape):
    """Singular values end between 0.68 and 1.13 (Jordan et al. 2024), times sqrt(max(1, m / n))."""
    weights, grads = problem(seed=4, shapes=[shape], steps=1)
    after = run(weights, grads, {"lr": 1.0, "variant": "classic", "ns_dtype": "float32"})[0][0][0]
    values = torch.linalg.svdvals(weights[0] - after) / max(1, shape[0] / shape[1]) ** 0.5
    # the smallest singular value of a square random matrix is not lifted all the way in five rounds
    assert values.max() < 1.25
    assert values[: len(values) * 3 // 4].min() > 0.6


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32), (2, 12)])
def test_modern_updates_have_the_norm_of_an_orthogonal_matrix(shape):
    """Muon+ and NorMuon keep ||Y||_F = sqrt(min(m, n)), whatever the scale of the gradient."""
    weights, grads = problem(seed=5, shapes=[shape], steps=3)
    history, _ = run(weights, grads, {"lr": 1.0, "ns_dtype": "float32"})
    for before, after in zip([weights, *history], history, strict=False):
        norm = (before[0] - after[0]).norm().item()
        assert norm == pytest.approx((min(shape) * max(1, shape[0] / shape[1])) ** 0.5, rel=1e-4)


def test_decay_acts_only_where_the_update_agrees_with_the_weight():
    weights, grads = problem(seed=6, shapes=[(24, 24)], steps=1)
    free = run(weights, grads, {"lr": 0.1, "weight_decay": 0.0, "ns_dtype": "float32"})[0][0][0]
    decayed = run(weights, grads, {"lr": 0.1, "weight_decay": 0.5, "ns_dtype": "float32"})[0][0][0]
    W, update = weights[0], weights[0] - free
    true = torch.where(update * W >= 0, 0.1 * 0.5 * W, torch.zeros_like(W))
    # fp32 difference of numbers near 1
    torch.testing.assert_close(free - decayed, true, rtol=0, atol=1e-6)
    assert 0.3 < (true != 0).double().mean() < 0.7


def test_a_matrix_is_updated_the_same_alone_and_in_company():
    """Matrices of one shape go through as a batch; the state is each matrix's own."""
    weights, grads = problem(seed=7, shapes=[(24, 24)] * 3 + [(24, 48)])
    together, _ = run(weights, grads, {"lr": 0.02, "weight_decay": 0.1, "ns_dtype": "float32"})
    for i, w in enumerate(weights):
        alone, _ = run(
            [w], [[gs[i]] for gs in grads], {"lr": 0.02, "weight_decay": 0.1, "ns_dtype": "float32"}
        )
        # batched products may add in another order
        torch.testing.assert_close(alone[-1][0], together[-1][i], rtol=0, atol=1e-6)


def test_state_is_kept_per_matrix_in_the_documented_shapes():
    weights, grads = problem(steps=1)
    _, optimizer = run(weights, grads, {"lr": 0.02})
    for p in optimizer.param_groups[0]["params"]:
        m, n = p.shape
        state = optimizer.state[p]
        assert state["momentum_buffer"].shape == (m, n)
        assert state["second_momentum_buffer"].shape == ((m, 1) if m >= n else (1, n))


@pytest.mark.parametrize("variant", ["modern", "classic"])
def test_a_zero_gradient_gives_no_nan(variant):
    weights = [torch.randn(8, 8), torch.randn(8, 32)]
    history, _ = run(
        weights, [[torch.zeros(8, 8), torch.zeros(8, 32)]] * 2, {"lr": 0.02, "variant": variant}
    )
    assert all(w.isfinite().all() for step in history for w in step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "baroque"}, "variant"),
        ({"ns_steps": 6}, "ns_steps"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"variant": "classic", "weight_decay": 0.1}, "weight_decay"),
        ({"ns_dtype": "float8"}, "ns_dtype"),
        ({"compile": "maybe"}, "compile"),
    ],
)
def test_options_that_cannot_be_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        GroupedOptimizer(
            [
                {
                    "params": [torch.nn.Parameter(torch.zeros(4, 4))],
                    "rule": "muon",
                    "lr": 0.02,
                    **options,
                }
            ]
        )


# --- the dtype of the orthogonalisation: facts sheet 2.2, step 2, and 2.1
# ------------------------------------------------

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("variant", "compute", "has_bf16", "expected"),
    [
        ("modern", BF16, True, BF16),
        ("modern", FP32, True, FP32),
        ("classic", BF16, True, BF16),
        ("classic", FP32, True, BF16),  # always
        ("modern", BF16, False, FP32),  # the exception: hardware that would only imitate bf16
        ("classic", FP32, False, FP32),
    ],
)
def test_auto_follows_the_compute_dtype_where_the_hardware_has_bf16(
    monkeypatch, variant, compute, has_bf16, expected
):
    monkeypatch.setattr(muon, "multiplies_bf16", lambda device: (has_bf16, "as the test says"))
    group = {"ns_dtype": "auto", "variant": variant, "compute_dtype": compute}
    for device in ("cpu", "cuda"):
        assert muon.ns_dtype(group, torch.device(device)) == expected
    for name, asked in (("float32", FP32), ("bfloat16", BF16)):
        assert muon.ns_dtype({**group, "ns_dtype": name}, torch.device("cpu")) == asked


# --- compiled ---
# --------------------


@pytest.mark.skipif(
    " " in sys.prefix,
    reason=(
        "torch's compiler cannot be in a path with a space (torch 2.13); updates then run "
        "uncompiled"
    ),
)
@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("variant", ["modern", "classic"])
def test_compiled_and_eager_give_the_same_update(variant, caplog):
    weights, grads = problem(seed=8, shapes=[(24, 24), (96, 24), (2, 12)], steps=3)
    options = {"lr": 0.02, "variant": variant, "ns_dtype": "float32"}
    eager, _ = run(weights, grads, {**options, "compile": False})
    compiled, _ = run(weights, grads, {**options, "compile": True})
    assert not [r for r in caplog.records if r.name == muon.log.name]  # it did compile
    for mine, theirs in zip(compiled[-1], eager[-1], strict=True):
        torch.testing.assert_close(mine, theirs, **TIGHT)


@pytest.mark.parametrize(("compile", "compiles"), [("auto", False), (True, True), (False, False)])
@pytest.mark.parametrize("variant", ["modern", "classic"])
def test_auto_compiles_nothing_on_a_cpu(monkeypatch, variant, compile, compiles):
    made = []
    monkeypatch.setattr(muon, "_compiled", {})
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: made.append((f.__name__, options)) or f
    )
    weights, grads = problem(steps=2)
    run(weights, grads, {"lr": 0.02, "variant": variant, "compile": compile})
    assert made == ([(f"{variant}_update", {"dynamic": False})] if compiles else [])


def test_auto_compiles_on_cuda():
    answers = {
        (c, d): muon.wants_compile({"compile": c}, torch.device(d))
        for c in ("auto", True, False)
        for d in ("cuda", "cpu", "mps")
    }
    assert [key for key, yes in answers.items() if yes] == [
        ("auto", "cuda"),
        (True, "cuda"),
        (True, "cpu"),
        (True, "mps"),
    ]


def test_a_compiler_that_fails_is_one_line_and_the_run_goes_on(monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("g++: command not found\nand forty more lines")

    monkeypatch.setattr(muon, "_compiled", {})
    monkeypatch.setattr(torch, "compile", lambda f, **options: broken)
    weights, grads = problem(steps=3)
    history, _ = run(weights, grads, {"lr": 0.02, "compile": True})
    eager, _ = run(weights, grads, {"lr": 0.02, "compile": False})
    assert all(torch.equal(a, b) for a, b in zip(history[-1], eager[-1], strict=True))
    (line,) = [record.getMessage() for record in caplog.records]
    assert (
        "modern_update runs uncompiled" in line
        and "g++: command not found" in line
        and "\n" not in line
    )


def test_an_error_of_the_update_itself_is_not_taken_for_the_compilers(monkeypatch):
    monkeypatch.setattr(muon, "_compiled", {})
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    with pytest.raises(ZeroDivisionError):
        muon.run(lambda: 1 / 0, True)
