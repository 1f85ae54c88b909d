"""AdamW against the facts sheet's formula (2.2) and against torch.optim.AdamW."""

import sys

import pytest
import torch
from plain_optim import PlainAdamW

from nanochat.optim import GroupedOptimizer, adamw, muon

SHAPES = [(20, 8), (6,), (1,), (1, 24)]


def run(options, steps=8, dtype=torch.float32, rates=None, make=None):
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in SHAPES]
    start = [p.detach().clone() for p in params]
    optimizer = (
        make(params) if make else GroupedOptimizer([{"params": params, "rule": "adamw", **options}])
    )
    grads, history = [], []
    for step in range(steps):
        if rates:
            optimizer.param_groups[0]["lr"] = rates[step]
        grads.append(
            [
                (torch.randn(s, generator=g) * 10.0 ** (i - 2)).to(dtype)
                for i, s in enumerate(SHAPES)
            ]
        )
        for p, grad in zip(params, grads[-1], strict=True):
            p.grad = grad.clone()
        optimizer.step()
        history.append([p.detach().clone() for p in params])
    return start, grads, history, optimizer


@pytest.mark.parametrize(
    ("betas", "eps", "decay"),
    [
        ((0.8, 0.96), 1e-10, 0.01),
        ((0.8, 0.995), 1e-10, 0.001),
        ((0.96, 0.95), 1e-10, 0.0),
        ((0.9, 0.99), 0.3, 0.1),
    ],
)
def test_equals_the_formula_over_several_steps(betas, eps, decay):
    """eps of 0.3 shows where it enters; a rate that changes shows that decay follows it."""
    rates = [0.1 * (1 - 0.1 * i) for i in range(8)]
    start, grads, history, _ = run(
        {"lr": 0.1, "betas": betas, "eps": eps, "weight_decay": decay}, rates=rates
    )
    for i, p in enumerate(start):
        plain, p = PlainAdamW(p.shape), p.double()
        for step, gs in enumerate(grads):
            p = plain.step(p, gs[i].double(), rates[step], betas, eps, decay)
            # steps of about 0.1 with fp32 moments: 6e-8 relative each, some ten operations
            torch.testing.assert_close(history[step][i].double(), p, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_torch_adamw(decay):
    options = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay}
    mine = run(options)[2]
    theirs = run(options, make=lambda params: torch.optim.AdamW(params, **options))[2]
    for a, b in zip(mine, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            # the same operations in another order
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_moments_have_the_dtype_of_the_parameter():
    _, _, _, optimizer = run({"lr": 0.1}, dtype=torch.bfloat16, steps=1)
    for p in optimizer.param_groups[0]["params"]:
        assert (
            optimizer.state[p]["exp_avg"].dtype
            == optimizer.state[p]["exp_avg_sq"].dtype
            == torch.bfloat16
        )
        assert optimizer.state[p]["exp_avg"].shape == p.shape


def test_first_step_is_the_rate_in_the_direction_of_the_gradient():
    start, grads, history, _ = run({"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-10}, steps=1)
    for p, g, after in zip(start, grads[0], history[0], strict=True):
        # fp32 difference of numbers near 1
        torch.testing.assert_close(p - after, 0.1 * g.sign(), rtol=1e-4, atol=1e-6)


def refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GroupedOptimizer(
            [
                {
                    "params": [torch.nn.Parameter(torch.zeros(4))],
                    "rule": "adamw",
                    **{"lr": 0.1, **options},
                }
            ]
        )


@pytest.mark.parametrize(
    "options", [{"betas": (1.0, 0.9)}, {"betas": (0.9, 1.5)}, {"betas": (-0.1, 0.9)}], ids=str
)
def test_betas_that_cannot_be_are_an_error(options):
    refused(options)


@pytest.mark.parametrize("options", [{"lr": -0.1}, {"eps": -1.0}, {"betas": (0.9,)}], ids=str)
def test_other_options_that_cannot_be_are_an_error(options):
    refused(options)


@pytest.mark.skipif(" " in sys.prefix, reason="torch's compiler takes no path with a space")
@pytest.mark.slow  # ten seconds of compiling
def test_compiled_and_uncompiled_give_the_same_update(monkeypatch, caplog):
    """Large tensors in one pass, with a rate that changes and is not compiled in."""
    monkeypatch.setattr(adamw, "SMALL", 150)
    options = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1}
    rates = [0.1 * (1 - 0.1 * i) for i in range(4)]
    found = {}
    for compile in (False, True):
        torch._dynamo.utils.counters.clear()
        _, _, found[compile], _ = run({**options, "compile": compile}, steps=4, rates=rates)
        assert torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) == int(compile)
    assert not [r for r in caplog.records if r.name == muon.log.name]  # it did compile
    for a, b in zip(found[False], found[True], strict=True):
        for p, q in zip(a, b, strict=True):
            # ten fp32 operations in another order, on values of about 1
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert all(torch.equal(p, q) for p, q in zip(a[1:], b[1:], strict=True))


def test_it_is_compiled_where_the_network_is_or_on_cuda():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not adamw._compiles({"compile": "auto"}, cpu)
    assert adamw._compiles({"compile": "auto", "compiled": True}, cpu)
    assert adamw._compiles({}, cuda)
    assert not adamw._compiles({"compile": False, "compiled": True}, cuda)
