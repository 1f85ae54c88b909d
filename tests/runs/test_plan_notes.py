"""What a plan does not take as typed, or not as the original would, it says; what was typed holds
or is refused."""

import pytest
from omegaconf import OmegaConf

from nanochat.gpt import build_arch, from_depth
from nanochat.optim import Schedule
from nanochat.runs.plan import make_epochs_plan, make_plan
from nanochat.runs.text import mixed_generations


@pytest.fixture(scope="module")
def modern(request):
    arch = build_arch(
        OmegaConf.to_container(
            OmegaConf.load(request.config.rootpath / "conf" / "arch" / "modern.yaml")
        )
    )
    return lambda depth: from_depth(depth, vocab_size=32768, arch=arch)


@pytest.mark.parametrize(("warmup", "total"), [(3, 10), (40, 40), (40, 399), (1, 1), (0, 5)])
def test_a_typed_warmup_holds(warmup, total):
    schedule = Schedule(warmup_steps=warmup)
    schedule.check_length(total)
    rates = [schedule.lr(step, total) for step in range(warmup)]
    # as the original, which shortens nothing
    assert rates == [(step + 1) / warmup for step in range(warmup)]
    assert f"warm-up {warmup} steps, warm-down" in schedule.describe(total)


def test_a_typed_warmup_longer_than_the_run_is_refused():
    with pytest.raises(
        ValueError,
        match=r"optim\.schedule\.warmup_steps=11 is longer than the run of 10 steps.*auto",
    ):
        Schedule(warmup_steps=11).check_length(10)


@pytest.mark.parametrize(
    ("total", "steps", "said"),
    [(20, 2, "a tenth"), (399, 39, "warmup_steps=40 takes all"), (400, 40, None)],
)
def test_a_planned_warmup_that_was_shortened_is_said(total, steps, said):
    schedule = Schedule()
    schedule.check_length(total)
    assert schedule.warmup(total) == steps
    text = schedule.describe(total)
    assert f"warm-up {steps} steps" in text
    assert (said in text) if said else ("auto" not in text)


def test_fewer_steps_than_the_ratio_gives_say_that_the_batch_is_smaller(modern):
    plan = make_plan(modern(12), modern(12), max_steps=1_000)
    assert plan.batch_tokens == 262_144
    assert len(plan.notes) == 1
    assert "max_steps=1,000 makes a step 262,144 tokens" in plan.notes[0]
    assert "524,288 (that of plan.ratio=12) type batch_tokens=524288" in plan.notes[0]
    as_original = make_plan(modern(12), modern(12), max_steps=1_000, batch_tokens=524_288)
    assert (as_original.steps, as_original.lr_factor, as_original.notes) == (1_000, 1.0, ())


@pytest.mark.parametrize("settings", [{"tokens": 10**8}, {"flops": 1e17}, {"ratio": 0.3}])
def test_so_does_any_other_length_that_makes_it_smaller(modern, settings):
    plan = make_plan(modern(12), modern(12), **settings)
    assert plan.batch_tokens < 524_288
    assert "type batch_tokens=" in plan.notes[0]


@pytest.mark.parametrize("depth", [4, 12, 20, 26])
def test_the_plan_of_a_depth_needs_no_note(modern, depth):
    assert make_plan(modern(depth), modern(12)).notes == ()


def test_a_bound_on_rates_or_decay_is_said(modern):
    plan = make_plan(modern(4), modern(12), batch_tokens=8192)
    assert plan.lr_factor == 0.5
    assert any("rates x 0.5" in note and "0.125 of the law" in note for note in plan.notes)
    plan = make_plan(modern(4), modern(12), weight_decay=0.4)
    assert plan.weight_decay == 2.0
    assert any("Muon weight decay 2, and not the 2.7 of the law" in note for note in plan.notes)
    (note,) = make_epochs_plan(modern(4), rows=10, epochs=1, batch_tokens=8192).notes
    assert "rates x 0.5" in note


def config(**changes):
    plain = {
        "arch": {"name": "classic"},
        "optim": {"groups": {"matrix": {"rule": "muon", "variant": "classic"}}},
        "plan": {"scale": "classic", "ratio": 20, "tokens": None, "flops": None},
        "max_steps": None,
        "trainer": {"gradient_clip_val": 1.0},
    }
    return {**plain, **changes}


def test_a_whole_generation_is_no_mixture():
    assert mixed_generations(config(), 65536) is None
    assert mixed_generations(config(max_steps=5), 4096) is None  # neither generation's vocabulary
    modern = {
        "arch": {"name": "modern"},
        "optim": {"groups": {"matrix": {"rule": "muon", "variant": "modern"}}},
        "plan": {"scale": "modern", "ratio": 12, "tokens": None, "flops": None},
        "trainer": {"gradient_clip_val": 1.0},
    }
    # clipping alone is nobody's generation
    assert mixed_generations(config(**modern), 32768) is None


def test_a_mixture_is_named_in_one_line():
    plan = {"scale": "modern", "ratio": 12, "tokens": None, "flops": None}
    said = mixed_generations(config(plan=plan, trainer={"gradient_clip_val": None}), 32768)
    assert said == (
        "mixed generations: classic: arch, optim; modern: plan.scale, plan.ratio, "
        "tokenizer.vocab_size, "
        "trainer.gradient_clip_val; experiment=classic sets all"
    )
    said = mixed_generations(config(arch={"name": "modern"}), 65536)
    assert said is not None and "modern: arch;" in said
