"""The chunked head loss against F.cross_entropy on the full logits."""

import pytest
import torch
import torch.nn.functional as F

from nanochat.gpt import loss
from nanochat.gpt.loss import head_loss, head_losses

# fp32 sums of a hundred terms in another order: 1e-6 relative to the largest entry, with a margin
# for cancellation
FP32 = {"rtol": 1e-5, "atol": 1e-5}
B, T, C, V, PADDED = 3, 37, 24, 150, 192  # 111 tokens: a multiple of 3 and 37 only
CAP = 15.0


def inputs(seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, C, generator=g).to(dtype)
    # raw logits of std 15, so that the cap bends most of them
    weight = 3 * torch.randn(PADDED, C, generator=g)
    targets = torch.randint(V, (B, T), generator=g)
    targets[0, 5:20] = -1
    targets[2, :] = -1
    return x, weight, targets


def full(x, weight, targets, cap=CAP, reduction="sum"):
    """Facts sheet 1.4 step 4 and 1.6: all logits at once, cut to V, fp32, capped."""
    z = (x @ weight.to(x.dtype).T)[..., :V].float()
    return F.cross_entropy(
        (cap * torch.tanh(z / cap)).flatten(0, 1),
        targets.flatten(),
        ignore_index=-1,
        reduction=reduction,
    )


@pytest.fixture(params=[1, 7, 37, 64, 110, 111, 112, None], ids=lambda n: f"{n}_rows")
def rows(request, monkeypatch):
    """Chunks that divide the tokens, that do not, and one for all of them; None: the module's own
    size."""
    if request.param:
        monkeypatch.setattr(loss, "chunk_rows", lambda vocab, device: request.param)


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("cap", [15.0, 20.0])
def test_loss_and_gradients_equal_those_of_the_full_logits(cap):
    x, weight, targets = inputs()
    results = []
    for compute in (
        lambda x, w: head_loss(x, w, targets, softcap=cap, vocab=V),
        lambda x, w: full(x, w, targets, cap),
    ):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        value = compute(*leaves)
        (value / 7).backward()  # a factor, as accumulation has: the backward pass must scale by it
        results.append((value.detach(), leaves[0].grad, leaves[1].grad))
    (mine, dx, dw), (true, true_dx, true_dw) = results
    torch.testing.assert_close(mine, true, rtol=1e-5, atol=0)
    torch.testing.assert_close(dx, true_dx, **FP32)
    torch.testing.assert_close(dw, true_dw, **FP32)
    assert not dw[V:].any()  # rows of the padding learn nothing
    assert not dx[2].any()


@pytest.mark.usefixtures("rows")
def test_losses_of_every_token_equal_those_of_the_full_logits():
    x, weight, targets = inputs()
    with torch.no_grad():
        each = head_losses(x, lambda part: part @ weight.T, targets, softcap=CAP, vocab=V)
        assert each.shape == (B, T)
        assert each.dtype == torch.float32
        torch.testing.assert_close(
            each.flatten(), full(x, weight, targets, reduction="none"), **FP32
        )
        assert not each[targets == -1].any()
        torch.testing.assert_close(
            head_loss(x, weight, targets, softcap=CAP, vocab=V),
            full(x, weight, targets),
            rtol=1e-5,
            atol=0,
        )


@pytest.mark.usefixtures("rows")
def test_all_ignored_is_zero_with_zero_gradients():
    """A mean over no token would be NaN; the sum is 0."""
    x, weight, targets = inputs()
    x, weight = x.requires_grad_(), weight.requires_grad_()
    value = head_loss(x, weight, torch.full_like(targets, -1), softcap=CAP, vocab=V)
    value.backward()
    assert value.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_gradient_is_the_slope_of_the_loss(monkeypatch):
    """Central differences in the direction of the gradient, without any autograd on the other
    side."""
    monkeypatch.setattr(loss, "chunk_rows", lambda vocab, device: 16)
    x, weight, targets = inputs()
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    head_loss(*leaves, targets, softcap=CAP, vocab=V).backward()
    step = 1e-2
    for i, leaf in enumerate(leaves):
        direction = leaf.grad / leaf.grad.norm()
        ends = []
        for sign in (1, -1):
            moved = [x.double(), weight.double()]
            moved[i] = moved[i] + sign * step * direction.double()
            ends.append(full_in_float64(*moved, targets))
        slope = (ends[0] - ends[1]) / (2 * step)
        # error of central differences: step**2 times the third derivative, here about 1e-5 of the
        # slope
        assert slope.item() == pytest.approx(leaf.grad.norm().item(), rel=1e-3)


def full_in_float64(x, weight, targets):
    z = (x @ weight.T)[..., :V]
    return F.cross_entropy(
        (CAP * torch.tanh(z / CAP)).flatten(0, 1),
        targets.flatten(),
        ignore_index=-1,
        reduction="sum",
    )


def test_sum_over_micro_batches_equals_the_whole():
    x, weight, targets = inputs()
    targets = targets.clamp_min(0)
    whole = weight.clone().requires_grad_()
    total = head_loss(x, whole, targets, softcap=CAP, vocab=V)
    total.backward()
    parts = weight.clone().requires_grad_()
    values = []
    for b in range(B):
        value = head_loss(x[b : b + 1], parts, targets[b : b + 1], softcap=CAP, vocab=V)
        value.backward()
        values.append(value.item())
    assert sum(values) == pytest.approx(total.item(), rel=1e-6)
    torch.testing.assert_close(parts.grad, whole.grad, **FP32)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_only_what_needs_a_gradient_gets_one(frozen):
    x, weight, targets = inputs()
    leaf = weight.requires_grad_() if frozen == "x" else x.requires_grad_()
    head_loss(x, weight, targets, softcap=CAP, vocab=V).backward()
    assert leaf.grad is not None
    assert (x if frozen == "x" else weight).grad is None


@pytest.mark.usefixtures("rows")
def test_bf16_hidden_states_keep_fp32_losses_and_an_fp32_head_gradient():
    x, weight, targets = inputs(dtype=torch.bfloat16)
    weight = weight.bfloat16().float()  # so that both sides multiply the same numbers
    x, weight = x.requires_grad_(), weight.requires_grad_()
    value = head_loss(x, weight, targets, softcap=CAP, vocab=V)
    value.backward()
    exact = x.detach().float().requires_grad_(), weight.detach().clone().requires_grad_()
    full(*exact, targets).backward()
    true = full(*exact, targets)
    assert value.dtype == weight.grad.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
    # logits of up to about 60 are rounded to 8 bits before the cap: tenths in single losses, a
    # hundredth of their sum
    assert value.item() == pytest.approx(true.item(), rel=0.01)
    for mine, theirs in ((x.grad, exact[0].grad), (weight.grad, exact[1].grad)):
        # rounding of logits and of their gradients, 2**-8 each
        assert (mine.float() - theirs).norm() < 0.03 * theirs.norm()


def test_full_logits_of_a_batch_are_never_made(monkeypatch):
    """No piece of logits has more rows than a chunk, and together they are all tokens once."""
    seen = []

    def step(z, targets, softcap):
        seen.append(tuple(z.shape))
        return loss.capped_loss_and_grad(z, targets, softcap)

    monkeypatch.setattr(loss, "chunk_rows", lambda vocab, device: 50)
    x, weight, targets = inputs()
    head_loss(x.requires_grad_(), weight, targets, softcap=CAP, vocab=V, step=step)
    assert seen == [(50, V), (50, V), (11, V)]


def test_chunk_rows_hold_the_logits_near_a_budget():
    cpu = torch.device("cpu")
    for vocab in (265, 8192, 32768, 65536, 200_000, 10**7):
        rows = loss.chunk_rows(vocab, cpu)
        assert 64 <= rows <= 8192
        assert rows & (rows - 1) == 0
        assert rows * vocab <= loss.CHUNK_VALUES_CPU or rows == 64
