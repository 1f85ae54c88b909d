"""Products in eight bits against rounding to a table of all 256 values and multiplying in fp64."""

import pytest
import torch
from tests.configs.test_every_yaml import composed
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.commands.configs import compose_choice
from nanochat.gpt import GPT, build_arch, fp8, from_depth
from nanochat.runs.recipe import build_recipe


def table(exponent_bits: int, mantissa_bits: int) -> torch.Tensor:
    """All finite values of a format, from the meaning of its bits."""
    bias, found = 2 ** (exponent_bits - 1) - 1, []
    for e in range(2**exponent_bits):
        for m in range(2**mantissa_bits):
            share = m / 2**mantissa_bits
            value = (1 + share) * 2.0 ** (e - bias) if e else share * 2.0 ** (1 - bias)
            found.append(value)
    # e4m3 has one NaN at its end, e5m2 infinity and NaN in its last exponent
    kept = found[:-1] if exponent_bits == 4 else found[: -(2**mantissa_bits)]
    values = torch.tensor(kept, dtype=torch.float64)
    return torch.cat((-values.flip(0), values)).unique()


FORMATS = {fp8.VALUES: table(4, 3), fp8.GRADIENTS: table(5, 2)}


def plain(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x rounded to the nearest value that the format has with one scale, in fp64."""
    values = FORMATS[dtype]
    factor = (values.max() / x.double().abs().max()).float().double()
    scaled = x.double() * factor
    nearest = (scaled.flatten()[:, None] - values).abs().argmin(1)
    return values[nearest].view(x.shape) / factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_and_its_gradients_are_those_of_rounded_factors(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 128, generator=drawn).to(dtype).requires_grad_()
    w = (torch.randn(144, 128, generator=drawn) * 3).requires_grad_()
    g = torch.randn(2, 32, 144, generator=drawn).to(dtype) * 1e-4
    y = fp8.multiply(x, w)
    y.backward(g)
    x8, w8, g8 = (
        plain(x.detach(), fp8.VALUES),
        plain(w.detach(), fp8.VALUES),
        plain(g, fp8.GRADIENTS),
    )
    wanted = (x8 @ w8.T, g8 @ w8, g8.flatten(0, 1).T @ x8.flatten(0, 1))
    assert x.grad is not None and w.grad is not None and w.grad.dtype == torch.float32
    # sums of 64 to 144 terms in fp32, or a result of 8 bits
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    for mine, true in zip((y.detach(), x.grad, w.grad), wanted, strict=True):
        assert mine.shape == true.shape
        assert (mine.double() - true).abs().max() < tolerance * true.abs().max()


def network() -> GPT:
    arch = build_arch(compose_choice("arch", "modern"))
    gpt = GPT.build(from_depth(2, vocab_size=96, sequence_len=64, arch=arch))  # width 128
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            p.normal_(0, 0.05, generator=drawn)
    return gpt


class Products(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._scaled_mm.default
        return func(*args, **(kwargs or {}))


def test_only_the_blocks_and_only_in_training_are_in_eight_bits_and_weights_stay() -> None:
    idx = torch.randint(0, 96, (2, 64), generator=torch.Generator().manual_seed(1))
    losses = {}
    for eight_bits in (False, True):
        gpt = network()
        before = {name: p.clone() for name, p in gpt.state_dict().items()}
        gpt.prepare(compute_dtype=torch.float32, attention_backend="sdpa", eight_bits=eight_bits)
        with Products() as evaluating, torch.no_grad():
            evaluated = gpt.loss_sum(idx, idx)
        with Products() as training:
            trained = gpt.loss_sum(idx, idx)
            trained.backward()
        assert evaluating.count == 0
        # qkv, c_proj, c_fc and c_proj of two blocks, three products each: not the gates
        assert training.count == (24 if eight_bits else 0)
        losses[eight_bits] = evaluated, trained.detach()
        for name, value in gpt.state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, before[name])
    assert losses[False][0] == losses[True][0] and losses[False][1] != losses[True][1]


def test_a_network_learns_by_heart_as_with_whole_products() -> None:
    idx = torch.randint(0, 96, (2, 65), generator=torch.Generator().manual_seed(1))
    last = {}
    for eight_bits in (False, True):
        gpt = network()
        gpt.prepare(compute_dtype=torch.bfloat16, attention_backend="sdpa", eight_bits=eight_bits)
        optimizer = torch.optim.AdamW(gpt.parameters(), lr=3e-3)
        for _ in range(25):
            loss = gpt.loss_sum(idx[:, :-1], idx[:, 1:]) / 128
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        last[eight_bits] = loss.item()
    print(last)
    assert last[True] < 1.05 * last[False] < 2.0  # of ln 96 = 4.6 at the start


REFUSED = {
    "model=d12 trainer=1xgpu": "slower up to a width of 768",
    "model=d24 trainer=1xgpu compute.compile=false": "drop compute.compile=false",
    "model=d24 trainer=cpu": "cpu multiplies no fp8",
}


@pytest.mark.parametrize("words", REFUSED)
def test_where_it_cannot_be_or_is_slower_it_is_refused(words: str) -> None:
    config = composed("+phase=base", "dry_run=true", "compute.fp8=true", *words.split())
    with pytest.raises(ValueError, match=REFUSED[words]):
        build_recipe(config).check_fp8()


def test_a_wide_model_on_a_card_may_have_it() -> None:
    words = ("+phase=base", "model=d24", "trainer=8xh100", "dry_run=true", "compute.fp8=true")
    build_recipe(composed(*words)).check_fp8()
