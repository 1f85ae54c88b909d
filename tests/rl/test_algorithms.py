"""Every algorithm against numbers computed by hand, from the formula of its paper."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from nanochat.rl.algorithms import Algorithm, build_algorithm, has_signal, objective
from nanochat.runtime.paths import conf_dir

# two questions of four answers: how many tokens were sampled, what they earned
COUNTS = [[2, 4, 0, 6], [3, 3, 3, 3]]
REWARDS = [[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]]


def named(name: str) -> Algorithm:
    base = OmegaConf.load(conf_dir() / "algo/_algo.yaml")
    own = OmegaConf.load(conf_dir() / f"algo/{name}.yaml")
    own.pop("defaults")
    own = own.get("algo", own)  # nanochat's sets more than the algorithm
    return build_algorithm(OmegaConf.to_container(OmegaConf.merge(base, own)))


def test_advantages() -> None:
    for name in ("nanochat", "reinforce", "dr_grpo"):
        assert named(name).advantages(REWARDS[1]) == [0.25, 0.25, 0.25, -0.75]
    std = math.sqrt((3 * 0.0625 + 0.5625) / 3)  # of n - 1: 0.5
    assert std == 0.5
    for name in ("grpo", "dapo"):
        assert named(name).advantages(REWARDS[1]) == pytest.approx([0.5, 0.5, 0.5, -1.5], abs=1e-5)
        assert named(name).advantages([1.0, 1.0]) == [0.0, 0.0] and not has_signal([1.0, 1.0])
        assert named(name).advantages([0.1 + 0.2, 0.3]) == [0.0, 0.0], "equal but for rounding"


def test_nanochats_passes() -> None:
    """Per pass: sum over its tokens / (tokens of the pass * passes of the question * questions of
    the step)."""
    algorithm = Algorithm("x", normalise="pass", pass_rows=2)
    assert algorithm.token_weights(COUNTS, 256) == [
        [1 / (6 * 2 * 2), 1 / (6 * 2 * 2), 1 / (6 * 2 * 2), 1 / (6 * 2 * 2)],
        [1 / (6 * 2 * 2)] * 4,
    ]
    uneven = algorithm.token_weights([[2, 4, 1, 0], [3, 3, 3, 3]], 256)
    assert uneven[0] == [1 / 24, 1 / 24, 1 / 4, 1 / 4]
    assert (
        named("nanochat").pass_rows == 8
        and not named("nanochat").train_stop
        and named("nanochat").distribution == "full"
    )


def test_tokens_answers_and_a_constant() -> None:
    assert named("dapo").token_weights(COUNTS, 256) == [[1 / 24] * 4] * 2
    assert named("reinforce").token_weights(COUNTS, 256) == [[1 / 24] * 4] * 2
    assert named("grpo").token_weights(COUNTS, 256) == [
        [1 / 16, 1 / 32, 1 / 8, 1 / 48],
        [1 / 24] * 4,
    ]
    assert named("dr_grpo").token_weights(COUNTS, 256) == [[1 / 2048] * 4] * 2


def values(
    algorithm: Algorithm,
    ratios: list[float],
    advantages: list[float],
    start: list[float] | None = None,
):
    """Loss, clipped and k3 for tokens with these ratios, logp 0 and weight 1, and the gradient with
    respect to logp."""
    logp = torch.zeros(len(ratios), requires_grad=True)
    old = -torch.tensor(ratios).log()
    first = None if start is None else torch.tensor(start)
    loss, clipped, k3 = objective(
        algorithm, logp, old, first, torch.tensor(advantages), torch.ones(len(ratios))
    )
    (grad,) = torch.autograd.grad(loss, logp)
    return loss.item(), clipped.tolist(), k3.tolist(), grad.tolist()


def test_clipping_is_the_pessimist() -> None:
    """min(ratio A, clip(ratio) A): gains stop at the clip, losses do not (Schulman et al. 2017,
    arXiv:1707.06347)."""
    algorithm = Algorithm("x", clip_low=0.2, clip_high=0.2)
    loss, clipped, _, grad = values(
        algorithm, [1.5, 0.5, 1.5, 0.5, 1.1], [1.0, 1.0, -1.0, -1.0, 1.0]
    )
    assert clipped == [True, False, False, True, False]
    assert loss == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8 + 1.1), abs=1e-6)
    assert grad == pytest.approx([0, -0.5, 1.5, 0, -1.1], abs=1e-6)


def test_clip_higher_leaves_room_above() -> None:
    loss, clipped, _, _ = values(named("dapo"), [1.25, 1.3, 0.75], [1.0, 1.0, -1.0])
    assert clipped == [False, True, True] and loss == pytest.approx(-(1.25 + 1.28 - 0.8), abs=1e-6)


def test_without_a_clip_and_on_policy_it_is_reinforce() -> None:
    algorithm = named("reinforce")
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, clipped, _ = objective(
        algorithm, logp, None, None, torch.tensor([0.5, -1.0]), torch.tensor([0.1, 0.2])
    )
    (grad,) = torch.autograd.grad(loss, logp)
    assert grad.tolist() == pytest.approx([-0.05, 0.2]) and not clipped.any()
    loss, clipped, _, _ = values(algorithm, [9.0], [1.0])
    assert loss == pytest.approx(-9.0) and not clipped[0]


def test_the_divergence_is_k3() -> None:
    """exp(start - logp) - (start - logp) - 1, and its gradient 1 - exp(start - logp)."""
    algorithm = Algorithm("x", kl=0.5, clip_low=None, clip_high=None)
    loss, _, k3, grad = values(algorithm, [1.0, 1.0], [0.0, 0.0], start=[math.log(2), 0.0])
    assert k3 == pytest.approx([2 - math.log(2) - 1, 0.0], abs=1e-6)
    assert loss == pytest.approx(0.5 * (1 - math.log(2)), abs=1e-6) and grad == pytest.approx(
        [0.5 * (1 - 2), 0.0], abs=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage": "median"}, "algo.advantage=median is not known; choose from mean, std"),
        ({"normalise": "rows"}, "algo.normalise=rows is not known; choose from pass"),
        (
            {"distribution": "half"},
            "algo.distribution=half is not known; choose from sampled, full",
        ),
        ({"epochs": 0}, "algo.epochs=0 must be a whole number from 1 up"),
        ({"minibatches": 1.5}, "algo.minibatches=1.5"),
        ({"clip_low": 1.0}, "algo.clip_low=1 must be a number from 0 to below 1, or null"),
        ({"clip_high": -0.1}, "algo.clip_high=-0.1"),
        ({"kl": -1}, "algo.kl=-1"),
        ({"train_stop": 1}, "algo.train_stop=1 is not known; choose from true, false"),
        ({"refill": 2}, "algo.refill replaces groups that are left out; set algo.skip_dead=true"),
        ({"clip": 0.2}, "algo.clip is not a setting; did you mean algo.clip_low=…"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_algorithm({"name": "x", **settings})


def test_every_file_is_an_algorithm() -> None:
    names = sorted(path.stem for path in (conf_dir() / "algo").glob("[!_]*.yaml"))
    assert names == ["dapo", "dr_grpo", "grpo", "nanochat", "reinforce"]
    assert [named(name).name for name in names] == names
