"""The plan against the facts sheet's scale tables (1.9) and laws (2.4), and against what cannot
be."""

import math
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from nanochat.gpt import build_arch, counts, from_depth
from nanochat.runs.plan import auto_batch_tokens, estimate_seconds, make_plan


def arch(name, conf_dir):
    return build_arch(OmegaConf.to_container(OmegaConf.load(conf_dir / "arch" / f"{name}.yaml")))


@pytest.fixture(scope="module")
def conf_dir(request):
    return request.config.rootpath / "conf"


@pytest.fixture(scope="module")
def modern(conf_dir):
    return lambda depth, T=2048: from_depth(
        depth, vocab_size=32768, sequence_len=T, arch=arch("modern", conf_dir)
    )


@pytest.fixture(scope="module")
def classic(conf_dir):
    return lambda depth: from_depth(depth, vocab_size=65536, arch=arch("classic", conf_dir))


# depth, tokens per step, steps, factor on the rates, Muon weight decay
MODERN = [
    (4, 262_144, 528, "0.7071", "1.8899"),
    (6, 262_144, 1_062, "0.7071", "0.9396"),
    (8, 262_144, 1_920, "0.7071", "0.5197"),
    (10, 524_288, 1_605, "1.0000", "0.4396"),
    (12, 524_288, 2_520, "1.0000", "0.2800"),
    (14, 524_288, 3_759, "1.0000", "0.1877"),
    (16, 524_288, 5_376, "1.0000", "0.1313"),
    (18, 1_048_576, 3_712, "1.4142", "0.1344"),
    (20, 1_048_576, 4_980, "1.4142", "0.1002"),
    (22, 1_048_576, 6_517, "1.4142", "0.0766"),
    (24, 1_048_576, 8_352, "1.4142", "0.0597"),
    (26, 1_048_576, 10_510, "1.4142", "0.0475"),
    (28, 1_048_576, 13_020, "1.4142", "0.0383"),
    (30, 1_048_576, 15_907, "1.4142", "0.0314"),
    (32, 2_097_152, 9_600, "2.0000", "0.0368"),
]


@pytest.mark.parametrize(
    ("depth", "batch", "steps", "factor", "decay"), MODERN, ids=[f"d{row[0]}" for row in MODERN]
)
def test_modern_scale_table(modern, depth, batch, steps, factor, decay):
    plan = make_plan(modern(depth), modern(12))
    assert (plan.batch_tokens, plan.steps) == (batch, steps)
    assert (f"{plan.lr_factor:.4f}", f"{plan.weight_decay:.4f}") == (factor, decay)
    assert plan.horizon_tokens == 12 * counts.parameters(modern(depth))["scaling"]


@pytest.mark.parametrize(("ratio", "steps"), [(8, 5_568), (8.7, 6_055), (9.5, 6_612)])
def test_d24_steps_at_other_ratios(modern, ratio, steps):
    plan = make_plan(modern(24), modern(12), ratio=ratio)
    assert (plan.batch_tokens, plan.steps) == (1_048_576, steps)


def test_d24_at_ratio_8(modern):
    plan = make_plan(modern(24), modern(12), ratio=8)
    assert plan.horizon_tokens == 5_838_484_992
    assert plan.tokens == 5_568 * 1_048_576
    assert f"{plan.flops:.3e}" == "2.788e+19"


@pytest.mark.parametrize("ratio", [0.5, 8, 8.7, 9.5, 20, 40])
@pytest.mark.parametrize("depth", [8, 12, 24, 32])
def test_weight_decay_and_batch_do_not_depend_on_the_ratio(modern, depth, ratio):
    """Facts sheet 2.4: D = R * P and D_ref = R * P12, so that D_ref / D is P12 / P: d24 has 0.0597
    at ratio 8 too."""
    plan = make_plan(modern(depth), modern(12), ratio=ratio)
    table = {row[0]: row for row in MODERN}[depth]
    if plan.batch_tokens == table[1]:  # at ratio 0.5 the batch is cut so that 500 steps are left
        assert (f"{plan.lr_factor:.4f}", f"{plan.weight_decay:.4f}") == table[3:]
    else:
        assert ratio == 0.5 and plan.steps < 1_000


@pytest.mark.parametrize("ratio", [0.5, 8.0, 12.0])
def test_the_length_of_a_run_at_its_ratio_gives_the_same_plan_however_it_is_set(modern, ratio):
    whole = make_plan(modern(8), modern(12), ratio=ratio)
    for settings in ({"tokens": whole.horizon_tokens}, {"flops": whole.flops}):
        plan = make_plan(modern(8), modern(12), ratio=ratio, **settings)
        assert (plan.batch_tokens, plan.steps, plan.lr_factor) == (
            whole.batch_tokens,
            whole.steps,
            whole.lr_factor,
        )
        # whole steps are at most one step shorter than the horizon
        assert plan.weight_decay == pytest.approx(whole.weight_decay, rel=1 / whole.steps)


def test_where_nothing_says_a_ratio_the_reference_has_12(modern):
    """plan.ratio=null is what FLOPs and steps are given with; nanochat's ratio of -1 gives P12 / P
    as well."""
    whole = make_plan(modern(24), modern(12))
    plan = make_plan(modern(24), modern(12), ratio=None, flops=whole.flops)
    assert (plan.batch_tokens, plan.steps, f"{plan.weight_decay:.4f}") == (
        1_048_576,
        8_352,
        "0.0597",
    )


CLASSIC = [
    (4, 1_400),
    (6, 2_325),
    (8, 3_520),
    (10, 5_075),
    (12, 7_080),
    (16, 12_800),
    (20, 21_400),
    (24, 33_600),
    (26, 41_275),
    (32, 71_680),
    (34, 84_575),
]


@pytest.mark.parametrize(("depth", "steps"), CLASSIC, ids=[f"d{row[0]}" for row in CLASSIC])
def test_classic_scale_table(classic, depth, steps):
    plan = make_plan(classic(depth), classic(12), scale="classic", ratio=20)
    assert (plan.batch_tokens, plan.steps, plan.lr_factor, plan.weight_decay) == (
        524_288,
        steps,
        1.0,
        0.0,
    )


def test_published_d34_ran_at_ratio_40(classic):
    assert make_plan(classic(34), classic(12), scale="classic", ratio=40).steps == 169_150


# --- other ways to set the length
# -------------------------------------------------------------------------------------


def test_tokens_set_the_horizon(modern):
    plan = make_plan(modern(12), modern(12), tokens=1_321_210_944)  # what ratio 12 gives
    assert "plan.tokens" in plan.horizon_source
    assert plan == replace(make_plan(modern(12), modern(12)), horizon_source=plan.horizon_source)


def test_flops_round_to_the_nearest_step(modern):
    """Facts sheet 2.4: steps = round(flops / (FLOPs per token * B)), where a horizon in tokens
    takes the floor."""
    config = modern(12)
    per_step = counts.flops_per_token(config) * 524_288
    for wanted, steps in ((2_520.4, 2_520), (2_520.6, 2_521)):
        plan = make_plan(config, modern(12), flops=wanted * per_step)
        assert (plan.batch_tokens, plan.steps) == (524_288, steps)
        assert plan.flops == steps * per_step
        assert make_plan(config, modern(12), tokens=int(wanted * 524_288)).steps == 2_520


def test_max_steps_are_the_steps(modern):
    plan = make_plan(modern(12), modern(12), max_steps=2_520)
    assert (plan.steps, plan.batch_tokens, plan.lr_factor) == (2_520, 524_288, 1.0)
    # 2,520 whole steps are a little less than the horizon at ratio 12
    assert plan.weight_decay == pytest.approx(0.28, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 20, 1_000, 10**6])
def test_max_steps_never_take_a_larger_batch_than_the_whole_run(modern, steps):
    for depth in (2, 4, 12, 20):
        whole = make_plan(modern(depth), modern(12))
        plan = make_plan(modern(depth), modern(12), max_steps=steps)
        assert plan.steps == steps
        assert plan.batch_tokens <= whole.batch_tokens
        assert plan.batch_tokens % 2048 == 0


def test_a_given_batch_is_kept(modern):
    plan = make_plan(modern(20), modern(12), batch_tokens=524_288)
    assert (plan.batch_tokens, plan.lr_factor) == (524_288, 1.0)
    assert plan.steps == plan.horizon_tokens // 524_288
    # facts sheet 2.4: weight_decay * sqrt(B / B_ref) * D_ref / D
    assert plan.weight_decay == pytest.approx(0.28 * 110_100_912 / 435_160_240)


def test_weight_decay_is_proportional(modern):
    assert make_plan(modern(12), modern(12), weight_decay=0.1).weight_decay == pytest.approx(0.1)


# --- the batch law ---
# --------------------


def test_batch_law_is_a_power_of_two_near_the_0_383th_power():
    reference = 1.32e9
    for times in (0.5, 1, 2, 3.7, 4.2, 10, 100):
        law = 2**19 * times**0.383
        batch = auto_batch_tokens(times * reference, reference)
        assert math.log2(batch).is_integer()
        assert 2**-0.5 <= batch / law <= 2**0.5


def test_short_runs_get_a_small_batch(modern):
    """Down to two rows a step there are hundreds of steps left, and the batch never grows as the
    run shrinks."""
    before = math.inf
    for tokens in (10**9, 10**8, 10**7, 4 * 10**6):
        plan = make_plan(modern(4), modern(12), tokens=tokens)
        assert plan.batch_tokens <= before
        assert plan.steps >= 500
        before = plan.batch_tokens
    assert before == 4_096


@pytest.mark.parametrize("T", [100, 256, 1000, 2048])
@pytest.mark.parametrize("world_size", [1, 3, 8])
def test_batch_holds_whole_rows_on_every_process(modern, T, world_size):
    for settings in ({"ratio": 12}, {"tokens": 3 * 10**7}, {"max_steps": 700}, {"flops": 1e16}):
        plan = make_plan(modern(4, T), modern(12, T), world_size=world_size, **settings)
        assert plan.batch_tokens % (T * world_size) == 0


# --- what cannot be ---
# --------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 0},
        {"ratio": 0},
        {"tokens": 0},
        {"flops": 0.0},
        {"batch_tokens": 0},
        {"max_steps": -1},
        {"ratio": -1.0},
    ],
)
def test_zero_steps_name_the_setting(modern, settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=name) as caught:
        make_plan(modern(4), modern(12), **settings)
    assert "zero steps" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": 100_000, "batch_tokens": 524_288},
        {"ratio": 0.001, "batch_tokens": 524_288},
        {"flops": 1e9},
        {"ratio": 1e-4},
        {"tokens": 1_000},
    ],
)
def test_a_horizon_of_less_than_one_step_is_one_clear_line(modern, settings):
    with pytest.raises(ValueError, match="zero steps") as caught:
        make_plan(modern(4), modern(12), **settings)
    assert "\n" not in str(caught.value)
    assert next(iter(settings)) in str(caught.value)


def test_a_zero_step_error_reads_as_a_sentence(modern):
    with pytest.raises(
        ValueError, match="is 100,000 tokens, less than one step of batch_tokens=524,288"
    ):
        make_plan(modern(4), modern(12), tokens=100_000, batch_tokens=524_288)


def test_a_horizon_of_less_than_a_row_is_not_told_to_try_the_same_again(modern):
    with pytest.raises(ValueError, match="zero steps") as caught:
        make_plan(modern(4), modern(12), tokens=1_000)
    assert "try batch_tokens=2_048" not in str(caught.value)


def test_what_a_zero_step_error_proposes_works(modern):
    with pytest.raises(ValueError, match="zero steps") as caught:
        make_plan(modern(4), modern(12), tokens=100_000, batch_tokens=524_288)
    proposed = int(str(caught.value).split("try batch_tokens=")[1])
    assert make_plan(modern(4), modern(12), tokens=100_000, batch_tokens=proposed).steps >= 1


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": 10**9, "max_steps": 10},
        {"flops": 1e18, "tokens": 10**9},
        {"flops": 1e18, "max_steps": 10},
        {"flops": 1e18, "max_steps": 10, "tokens": 1},
    ],
)
def test_two_lengths_contradict_each_other(modern, settings):
    with pytest.raises(ValueError, match="keep one") as caught:
        make_plan(modern(4), modern(12), **settings)
    assert all(name in str(caught.value) for name in settings)


def test_no_length_at_all_is_an_error(modern):
    with pytest.raises(ValueError, match=r"plan\.ratio"):
        make_plan(modern(4), modern(12), ratio=None)


def test_an_unknown_scale_is_named_with_those_there_are(modern):
    with pytest.raises(ValueError, match="modern, classic"):
        make_plan(modern(4), modern(12), scale="baroque")


def test_estimated_time_is_flops_over_rate(modern):
    plan = make_plan(modern(12), modern(12))
    assert estimate_seconds(plan, 1e15, 8, 0.5) == pytest.approx(plan.flops / 4e15)
    assert estimate_seconds(plan, None, 8, 0.5) is None
