"""Every back-end that runs here against a masked softmax in float64, and the choice between
them."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from nanochat.gpt import attention
from nanochat.gpt.attention import BACKENDS, choose, runnable

CPU = torch.device("cpu")
# fp32 (2**-24 = 6e-8): a softmax row sums to 1 over values up to 8; a gradient sums up to 256 terms
# of up to 10 that partly cancel, 1e-5 at worst over what is tried here. One key more or less
# changes 1e-2 and more.
FP32 = {"rtol": 1e-5, "atol": 5e-5}


def plain(q, k, v, window):
    """Query i of T stands at position S - T + i; it sees itself and `window` positions before."""
    B, T, H, D = q.shape
    S, G = k.shape[1], k.shape[2]
    rows = []
    for b in range(B):
        heads = []
        for h in range(H):
            g = h * G // H
            position = torch.arange(S - T, S)[:, None]
            key = torch.arange(S)[None, :]
            hidden = (key > position) | (key < position - (S if window is None else window))
            scores = (q[b, :, h].double() @ k[b, :, g].double().T) / math.sqrt(D)
            heads.append(
                torch.softmax(scores + torch.zeros(T, S).double().masked_fill(hidden, -math.inf), 1)
                @ v[b, :, g].double()
            )
        rows.append(torch.stack(heads, 1))
    return torch.stack(rows)


def draw(B, T, S, H, G, D=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(
        2 * torch.randn(B, n, heads, D, generator=g) for n, heads in ((T, H), (S, G), (S, G))
    )


def runnable_here() -> list[str]:
    return [name for name in BACKENDS if runnable(name, CPU, torch.float32) is None]


LENGTHS = [
    (1, 1),
    (2, 2),
    (7, 7),
    (64, 64),
    (128, 128),
    (200, 200),
    (256, 256),
    (1, 9),
    (1, 200),
    (5, 9),
    (64, 128),
    (60, 250),
]


@pytest.mark.parametrize("window", [None, 1, 2, 5, 32, 63, 64, 65, 100, 127, 128, 200, 1000])
@pytest.mark.parametrize("name", runnable_here())
def test_forward_and_backward_equal_a_plain_masked_softmax(name, window):
    for T, S in LENGTHS:
        inputs = [x.requires_grad_() for x in draw(2, T, S, H=4, G=2)]
        exact = [x.detach().double().requires_grad_() for x in inputs]
        y, true = BACKENDS[name](*inputs, window), plain(*exact, window)
        assert y.shape == (2, T, 4, 8)
        weight = torch.randn(
            true.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        (y * weight.float()).sum().backward()
        (true * weight).sum().backward()
        where = f"{name}, window {window}, T {T}, S {S}"
        torch.testing.assert_close(y.double(), true, **FP32, msg=lambda m, w=where: f"{w}: {m}")
        for label, mine, theirs in zip("qkv", inputs, exact, strict=True):
            torch.testing.assert_close(
                mine.grad.double(),
                theirs.grad,
                **FP32,
                msg=lambda m, w=where, n=label: f"{w}, grad {n}: {m}",
            )


@pytest.mark.parametrize(("H", "G"), [(1, 1), (4, 4), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("name", runnable_here())
def test_key_heads_serve_contiguous_groups_of_query_heads(name, H, G):
    for window in (None, 16, 20):
        q, k, v = draw(1, 64, 64, H, G)
        torch.testing.assert_close(
            BACKENDS[name](q, k, v, window).double(), plain(q, k, v, window), **FP32
        )


@pytest.mark.parametrize("n", [1, 16, 20])
@pytest.mark.parametrize("name", runnable_here())
def test_window_n_sees_n_plus_one_keys(name, n):
    """With all scores equal the answer is the mean of the values seen: a lone one gives 1 / (n + 1)
    while in sight."""
    T = 64
    q, k, v = torch.zeros(1, T, 1, 8), torch.zeros(1, T, 1, 8), torch.zeros(1, T, 1, 8)
    v[0, 10] = 1.0
    y = BACKENDS[name](q, k, v, n)[0, :, 0, 0]
    expected = [1 / (min(t, n) + 1) if 10 <= t <= 10 + n else 0.0 for t in range(T)]
    assert y.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", runnable_here())
def test_bf16_is_as_good_as_its_eight_bits(name):
    for window in (None, 32, 50):
        q, k, v = (x.bfloat16() for x in draw(2, 128, 128, 4, 2))
        y = BACKENDS[name](q, k, v, window)
        assert y.dtype == torch.bfloat16
        # weights and result are rounded to 2**-8 each, of values up to about 6
        torch.testing.assert_close(y.double(), plain(q, k, v, window), rtol=0.02, atol=0.03)


def test_sees_is_the_plain_mask():
    for T, S, window in [(4, 4, None), (4, 4, 1), (3, 7, 2), (1, 5, 3), (5, 5, 9)]:
        mask = attention.sees(T, S, window)
        for i in range(T):
            for j in range(S):
                p = S - T + i
                assert bool(mask[i, j]) == (j <= p and (window is None or p - j <= window))


# --- the choice ---

SIZES = {"H": 4, "G": 2, "D": 8, "T": 300, "windows": {128, 300}}


def test_auto_chooses_one_that_runs():
    name, why = choose("auto", CPU, torch.float32, **SIZES)
    assert name in runnable_here()
    assert "proven" in why


@pytest.mark.parametrize("name", runnable_here())
def test_what_is_asked_for_is_taken(name):
    assert choose(name, CPU, torch.float32, **SIZES)[0] == name


def test_flex_on_a_cpu_is_one_clear_line():
    with pytest.raises(ValueError, match="attention=flex cannot run on cpu") as caught:
        choose("flex", CPU, torch.float32, **SIZES)
    assert "\n" not in str(caught.value)
    assert "try attention=" in str(caught.value)


def test_an_unknown_back_end_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="attention=flash9") as caught:
        choose("flash9", CPU, torch.float32, **SIZES)
    assert all(name in str(caught.value) for name in BACKENDS)


def ignores_window(q, k, v, window):
    return attention.reference(q, k, v, None)


def one_key_too_few(q, k, v, window):
    return attention.reference(q, k, v, None if window is None else window - 1)


def wrong_scale(q, k, v, window):
    return attention.reference(q * 1.05, k, v, window)


def wrong_groups(q, k, v, window):
    return attention.reference(q, k.flip(2), v.flip(2), window)


def right_forward_wrong_backward(q, k, v, window):
    y = attention.reference(q, k, v, window)
    return y.detach() + (y - y.detach()) * 1.1


def no_backward(q, k, v, window):
    return attention.reference(q, k, v, window).detach()


def nan(q, k, v, window):
    return attention.reference(q, k, v, window) * math.nan


def raises(q, k, v, window):
    raise RuntimeError("no kernel image is available for execution on the device")


BROKEN = [
    ignores_window,
    one_key_too_few,
    wrong_scale,
    wrong_groups,
    right_forward_wrong_backward,
    no_backward,
    nan,
    raises,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_broken_back_end_is_not_chosen(monkeypatch, broken, dtype):
    """It is planted as the first choice for windows, which the machine is made to believe it can
    run."""
    monkeypatch.setitem(BACKENDS, "flex", broken)
    monkeypatch.setattr(attention, "runnable", lambda name, device, dtype: None)
    name, why = choose("auto", CPU, dtype, **SIZES)
    assert name == "sdpa"
    assert "not flex" in why
    with pytest.raises(ValueError, match="attention=flex cannot run on cpu") as caught:
        choose("flex", CPU, dtype, **SIZES)
    assert "\n" not in str(caught.value)


def test_a_sound_back_end_planted_the_same_way_is_chosen(monkeypatch):
    """The refusals above are for what is wrong with them."""
    monkeypatch.setitem(BACKENDS, "flex", attention.reference)
    monkeypatch.setattr(attention, "runnable", lambda name, device, dtype: None)
    assert choose("auto", CPU, torch.float32, **SIZES)[0] == "flex"


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_choice_is_the_same_where_gradients_are_off(off):
    with off():
        assert choose("auto", CPU, torch.float32, **SIZES)[0] == "sdpa"


def test_window_zero_sees_itself_alone():
    q, k, v = draw(1, 16, 16, 2, 2)
    torch.testing.assert_close(BACKENDS["sdpa"](q, k, v, 0), v)


def test_nothing_that_runs_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(BACKENDS, "sdpa", raises)
    with pytest.raises(ValueError, match="no kernel image") as caught:
        choose("auto", CPU, torch.float32, **SIZES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("window", [None, 0, 7, 64])
def test_flash_attention_is_asked_for_the_windows_of_the_definition(monkeypatch, window, H, G):
    """The kernel is for CUDA; here a masked softmax does what its documentation says."""

    def as_documented(q, k, v, starts, starts_k, longest, longest_k, *, window_size, enable_gqa):
        left, right = window_size
        assert torch.equal(starts, starts_k) and longest == longest_k == 32
        assert right == 0 and enable_gqa == (q.size(1) != k.size(1)) and starts.dtype == torch.int32
        parts = [
            plain(*(x[a:b][None] for x in (q, k, v)), None if left == -1 else left)[0]
            for a, b in itertools.pairwise(starts.tolist())
        ]
        return torch.cat(parts).to(q.dtype)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_documented)
    q, k, v = draw(3, 32, 32, H, G)
    found = BACKENDS["flash"](q, k, v, window)
    torch.testing.assert_close(found, BACKENDS["sdpa"](q, k, v, window), **FP32)


def test_the_flash_attention_of_the_name_is_active_and_pytorchs_own_again(monkeypatch):
    from torch.nn import attention as registry

    known = registry._registry._FLASH_ATTENTION_IMPLS
    monkeypatch.setitem(known, "FA3", lambda: SimpleNamespace(remove=lambda: None))
    attention.activate("fa3")
    assert registry.current_flash_attention_impl() == "FA3"
    attention.activate("flash")
    assert registry.current_flash_attention_impl() is None


@pytest.mark.parametrize("name", attention.FLASH)
def test_flash_attention_on_a_cpu_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="FlashAttention is for bf16 on CUDA"):
        choose(name, CPU, torch.bfloat16, **SIZES)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 64, 100, 128, 512])
def test_cuda_back_ends_equal_a_plain_masked_softmax(window):
    for name in BACKENDS:
        if runnable(name, torch.device("cuda"), torch.bfloat16) is None:
            q, k, v = (x.bfloat16() for x in draw(2, 256, 256, 4, 2, D=64))
            y = BACKENDS[name](q.cuda(), k.cuda(), v.cuda(), window).cpu()
            # weights and result are rounded to 2**-8 each, of values up to about 6
            torch.testing.assert_close(
                y.double(),
                plain(q, k, v, window),
                rtol=0.02,
                atol=0.03,
                msg=lambda m, n=name: f"{n}: {m}",
            )
