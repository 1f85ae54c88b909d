"""Rate, momentum and decay at every step against the facts sheet (2.3), with the numbers the YAML
files hold."""

import math

import pytest

from nanochat.commands.configs import compose_choice
from nanochat.optim import Schedule, build_schedule


def schedule(name: str, **changes) -> Schedule:
    return Schedule(**{**compose_choice("optim", name)["schedule"], **changes})


def plain_lr(it, N, warmup, warmdown_ratio, final):
    down = round(warmdown_ratio * N)
    if it < warmup:
        return (it + 1) / warmup
    if it <= N - down:
        return 1.0
    p = (N - it) / down
    return p + (1 - p) * final


def plain_modern_momentum(it, N):
    down = round(0.65 * N)
    if it < 400:
        return 0.85 + (0.97 - 0.85) * it / 400
    if it >= N - down:
        return 0.97 + (0.90 - 0.97) * (it - (N - down)) / down
    return 0.97


@pytest.mark.parametrize("N", [400, 528, 1_000, 1_605, 9_999])
def test_modern_at_every_step(N):
    s = schedule("muon")
    for it in range(N + 1):
        assert s.lr(it, N) == pytest.approx(plain_lr(it, N, 40, 0.65, 0.05), abs=1e-9)
        assert s.momentum(it, N) == pytest.approx(plain_modern_momentum(it, N), abs=1e-9)
        assert s.decay(it, N) == pytest.approx(0.5 * (1 + math.cos(math.pi * it / N)), abs=1e-9)


@pytest.mark.parametrize("N", [10, 301, 1_400, 21_400])
def test_classic_at_every_step(N):
    s = schedule("muon_classic")
    for it in range(N + 1):
        assert s.lr(it, N) == pytest.approx(plain_lr(it, N, 0, 0.2, 0.0), abs=1e-9)
        assert s.momentum(it, N) == pytest.approx(0.85 + 0.10 * min(it / 300, 1), abs=1e-9)
        assert s.decay(it, N) == 1


# progress: rate, momentum, decay of a run of 2,520 steps (d12), by hand; 1,638 steps of warmdown
# begin at 882
@pytest.mark.parametrize(
    ("it", "rate", "momentum", "decay"),
    [
        (0, 1 / 40, 0.85, 1.0),
        (1260, 0.05 + 0.95 * 1260 / 1638, 0.97 - 0.07 * 378 / 1638, 0.5),
        (2520, 0.05, 0.90, 0.0),
    ],
    ids=["0 %", "50 %", "100 %"],
)
def test_modern_d12_at_0_50_and_100_percent(it, rate, momentum, decay):
    s = schedule("muon")
    assert (s.lr(it, 2520), s.momentum(it, 2520), s.decay(it, 2520)) == pytest.approx(
        (rate, momentum, decay)
    )


@pytest.mark.parametrize(
    ("it", "rate", "momentum"),
    [(0, 1.0, 0.85), (10_700, 1.0, 0.95), (19_260, 0.5, 0.95), (21_400, 0.0, 0.95)],
    ids=["0 %", "50 %", "90 %", "100 %"],
)
def test_classic_d20_at_0_50_and_100_percent(it, rate, momentum):
    s = schedule("muon_classic")
    assert (s.lr(it, 21_400), s.momentum(it, 21_400), s.decay(it, 21_400)) == pytest.approx(
        (rate, momentum, 1.0)
    )


def test_rising_momentum_wins_where_the_two_ranges_overlap():
    """600 steps: the warmdown begins at 210, the rise ends at 400."""
    s = schedule("muon")
    assert s.momentum(300, 600) == pytest.approx(0.94)
    assert s.momentum(400, 600) == pytest.approx(0.97 - 0.07 * 190 / 390)


@pytest.mark.parametrize("N", [1, 2, 5, 20, 100, 399])
def test_short_runs_reach_their_full_rate(N):
    """Fewer than 400 steps: the 40 of `auto` are cut to a tenth of the run."""
    s = schedule("muon")
    rates = [s.lr(it, N) for it in range(N)]
    assert max(rates) == 1.0
    assert rates.index(1.0) <= N / 10
    assert all(0 < r <= 1 for r in rates)


def test_initial_fraction_scales_the_whole_rate():
    """Facts sheet 2.3: modern sft starts at 0.8 of the base rates and goes down to zero over the
    last half."""
    whole, part = (
        schedule("muon", warmup_steps=0, warmdown_frac=0.5, final_lr_frac=0.0, init_lr_frac=f)
        for f in (1.0, 0.8)
    )
    for it in (0, 250, 500, 750, 1000):
        assert part.lr(it, 1000) == pytest.approx(0.8 * whole.lr(it, 1000))


def refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        schedule("muon", **change)


@pytest.mark.parametrize(
    "change",
    [
        {"weight_decay": "exponential"},
        {"warmdown_frac": 1.5},
        {"warmdown_frac": -0.1},
        {"final_lr_frac": 2},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_one_clear_line(change):
    refused(change)


@pytest.mark.parametrize(
    "change", [{"warmup_steps": -1}, {"momentum_steps": -1}, {"momentum_peak": 1.5}], ids=str
)
def test_other_settings_that_cannot_be_are_one_clear_line(change):
    refused(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"foo": 1}, r"optim\.schedule\.foo is not a setting.*warmup_steps.*weight_decay"),
        ({"warmup_steps": 2.5}, r"optim\.schedule\.warmup_steps=2.5 must be a whole number"),
        ({"warmup_steps": "many"}, r"optim\.schedule\.warmup_steps=many must be .*auto"),
        (
            {"warmup_auto_steps": -1},
            r"optim\.schedule\.warmup_auto_steps=-1 must be a whole number from 0 up",
        ),
        ({"momentum_steps": True}, r"optim\.schedule\.momentum_steps=true must be a whole number"),
        ({"warmdown_frac": None}, r"optim\.schedule\.warmdown_frac=null must be a number"),
        ({"final_lr_frac": [0.1]}, r"optim\.schedule\.final_lr_frac=\[0.1\] must be a number"),
        (
            {"final_lr_frac": math.nan},
            r"optim\.schedule\.final_lr_frac=nan must be a number from 0 to 1",
        ),
        ({"momentum_start": "0.9"}, r"optim\.schedule\.momentum_start='0.9' must be a number"),
        (
            {"momentum_end": 1},
            r"optim\.schedule\.momentum_end=1 must be a number from 0 to below 1",
        ),
        (
            {"momentum_steps": -1},
            r"optim\.schedule\.momentum_steps=-1 must be a whole number from 0 up",
        ),
        (
            {"weight_decay": 0.1},
            r"optim\.schedule\.weight_decay=0.1 is not known; choose from cosine, constant",
        ),
    ],
    ids=str,
)
def test_wrong_settings_of_a_config_are_one_line_that_names_them(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_schedule(change)
    assert "\n" not in str(caught.value)


def test_a_schedule_from_a_config_is_the_one_of_its_values():
    assert build_schedule({"warmup_steps": 7, "momentum_end": None}) == Schedule(
        warmup_steps=7, momentum_end=None
    )
    assert build_schedule({}) == Schedule()
