"""The optimizer of a whole network: rule, rate and decay of each parameter (facts sheet 2.1 and
2.2), and its state."""

import copy
import importlib
import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nanochat.optim
from nanochat.commands.configs import choices, compose_choice
from nanochat.gpt import GPT, GPTConfig, build_arch
from nanochat.optim import Schedule, build, muon, shows_length, table, uses_planned_decay


def network(arch: str = "modern", d: int = 64, seed: int = 42, **switches) -> GPT:
    config = GPTConfig(
        32, 100, 4, 4, 2, d, build_arch({**compose_choice("arch", arch), **switches})
    )
    return GPT.build(config, seed=seed)


def settings(optim: str = "muon") -> dict:
    return compose_choice("optim", optim)["groups"]


def by_name(optimizer) -> dict[str, dict]:
    return {name: group for group in optimizer.param_groups for name in group["names"]}


@pytest.mark.parametrize("optim", choices("optim"))
@pytest.mark.parametrize(
    "switches",
    [{}, {"bigram": True}, {"value_embeds": False}, {"smear": False, "backout": False}],
    ids=str,
)
@pytest.mark.parametrize("arch", ["modern", "classic"])
def test_every_parameter_is_in_exactly_one_group(arch, switches, optim):
    gpt = network(arch, **switches)
    optimizer = build(gpt, settings(optim))
    grouped = [
        (name, id(p))
        for group in optimizer.param_groups
        for name, p in zip(group["names"], group["params"], strict=True)
    ]
    assert sorted(grouped) == sorted((name, id(p)) for name, p in gpt.named_parameters())


@pytest.mark.parametrize("lr_factor", [1.0, 0.5])
@pytest.mark.parametrize("d", [64, 768])
def test_modern_rates_betas_and_decay(d, lr_factor):
    """The table of facts sheet 2.2; `lr_factor` is sqrt(B / 2**19), which leaves the smear and
    backout group alone."""
    gpt = network(d=d)
    groups = by_name(build(gpt, settings("muon"), lr_factor=lr_factor, weight_decay=0.123))
    s = (d / 768) ** -0.5
    for name, group in groups.items():
        if name == "lm_head.weight":
            rate, betas, decay = 0.008 * s, (0.8, 0.96), 0.01
        elif name == "transformer.wte.weight":
            rate, betas, decay = 0.3 * s, (0.8, 0.995), 0.001
        elif name.startswith("value_embeds"):
            rate, betas, decay = 0.5 * 0.3 * s, (0.8, 0.995), 0.01
        elif name == "resid_lambdas":
            rate, betas, decay = 0.01 * 0.5, (0.8, 0.95), 0.05
        elif name == "x0_lambdas":
            rate, betas, decay = 0.5, (0.96, 0.95), 0
        elif name in ("smear_gate.weight", "smear_lambda", "backout_lambda"):
            rate, betas, decay = 0.2 / lr_factor, (0.8, 0.95), 0  # fixed
        else:
            assert name.startswith("transformer.h."), name
            rate, betas, decay = 0.02, None, 0.123
            assert (group["rule"], group["variant"]) == ("muon", "modern")
            assert (group["momentum"], group["beta2"], group["ns_steps"]) == (0.95, 0.9, 5)
        assert group["lr"] == group["initial_lr"] == pytest.approx(rate * lr_factor), name
        assert group["weight_decay"] == pytest.approx(decay), name
        if betas:
            assert group["rule"] == "adamw"
            assert tuple(group["betas"]) == betas, name
            assert group["eps"] == 1e-10


@pytest.mark.parametrize("d", [64, 768])
def test_classic_rates_betas_and_decay(d):
    groups = by_name(build(network("classic", d=d), settings("muon_classic")))
    s = (d / 768) ** -0.5
    for name, group in groups.items():
        rate = {"lm_head.weight": 0.004 * s, "transformer.wte.weight": 0.2 * s}.get(name, 0.02)
        assert group["lr"] == pytest.approx(rate), name
        assert group["weight_decay"] == 0
        if name.startswith("transformer.h."):
            assert (group["rule"], group["variant"], group["momentum"], group["ns_steps"]) == (
                "muon",
                "classic",
                0.95,
                5,
            )
        else:
            assert (group["rule"], tuple(group["betas"]), group["eps"]) == (
                "adamw",
                (0.8, 0.95),
                1e-10,
            )


def test_a_schedule_moves_rates_momentum_and_muons_decay_only():
    optimizer = build(network(), settings(), weight_decay=0.2)
    schedule = Schedule(**compose_choice("optim", "muon")["schedule"])
    before = {name: dict(group) for name, group in by_name(optimizer).items()}
    optimizer.schedule_step(schedule, 750, 1000)
    for name, group in by_name(optimizer).items():
        assert group["lr"] == pytest.approx(before[name]["lr"] * schedule.lr(750, 1000))
        if group["rule"] == "muon":
            assert group["momentum"] == schedule.momentum(750, 1000)
            assert group["weight_decay"] == pytest.approx(0.2 * schedule.decay(750, 1000))
        else:
            assert group["weight_decay"] == before[name]["weight_decay"]


# --- what cannot be ---


def without(groups, role):
    return {k: v for k, v in groups.items() if k != role}


@pytest.mark.parametrize(
    "role",
    ["head", "embedding", "value_embedding", "resid_scalar", "x0_scalar", "gate_scalar", "matrix"],
)
def test_a_role_without_a_group_is_named(role):
    with pytest.raises(ValueError, match=rf"\b{role}\b.*roles"):
        build(network(), without(settings(), role))


@pytest.mark.parametrize("role", ["value_embedding", "resid_scalar", "x0_scalar", "gate_scalar"])
def test_a_group_for_a_role_this_network_lacks_is_fine(role):
    """One YAML serves all architectures."""
    build(network("classic"), without(settings("muon_classic"), role))


def test_a_role_no_network_has_is_named():
    with pytest.raises(ValueError, match="matrices"):
        build(network(), {**settings(), "matrices": {"rule": "muon", "lr": 0.1}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "lion9"}, r"matrix\.rule=lion9.*adamw.*muon"),
        ({"rule": None}, r"matrix\.rule"),
        ({"rule": "groups"}, r"matrix\.rule"),
        ({"rule": "torch.optim"}, r"matrix\.rule=torch\.optim torch.optim has no Options and step"),
        ({"rule": "nobodys.lion"}, r"matrix\.rule=nobodys\.lion cannot be imported .*nobodys"),
        ({"weight_dekay": 0.1}, r"matrix\.weight_dekay.*weight_decay"),
        ({"betas": [0.9, 0.9]}, r"matrix\.betas"),
        ({"lr": None}, r"matrix\.lr"),
    ],
    ids=str,
)
def test_an_unknown_rule_or_option_is_named_with_those_there_are(change, message):
    groups = settings()
    groups["matrix"].update(change)
    with pytest.raises(ValueError, match=message) as caught:
        build(network(), groups)
    assert "\n" not in str(caught.value)


def test_muon_is_refused_for_what_is_no_matrix():
    groups = settings()
    groups["resid_scalar"] = {"rule": "muon", "lr": 0.02}
    with pytest.raises(ValueError, match="resid_lambdas"):
        build(network(), groups)


def test_settings_are_left_as_they_were():
    groups = settings()
    before = copy.deepcopy(groups)
    build(network(), groups, lr_factor=0.5, weight_decay=0.1)
    assert groups == before


def test_table_counts_every_parameter_once():
    gpt = network()
    rows = list(table(build(gpt, settings())))
    counted = sum(
        int(re.search(r"x(\d+)$", label).group(1)) if re.search(r"  x\d+$", label) else 1
        for label, *_ in rows
    )
    assert counted == len(list(gpt.parameters()))
    assert len(rows) < counted / 2


@pytest.mark.parametrize(
    ("optim", "uses"), [("muon", True), ("muon_classic", False), ("adamw", False)]
)
def test_the_planned_decay_has_an_effect_exactly_where_a_group_asks_for_it(optim, uses):
    assert uses_planned_decay(settings(optim)) is uses
    decays = [
        [
            group["weight_decay"]
            for group in build(network(), settings(optim), weight_decay=decay).param_groups
        ]
        for decay in (0.1, 0.2)
    ]
    assert (decays[0] != decays[1]) is uses


def test_a_rule_is_told_the_compute_dtype_and_a_checkpoint_is_not():
    gpt = network()
    gpt.compute_dtype = torch.bfloat16
    optimizer, told = build(gpt, settings()), []
    optimizer._rules = [
        replace(rule, step=lambda params, grads, state, group: told.append(group["compute_dtype"]))
        for rule in optimizer._rules
    ]
    for p in gpt.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert told == [torch.bfloat16] * len(optimizer.param_groups)
    assert not any("compute_dtype" in group for group in optimizer.state_dict()["param_groups"])


# --- rules ---


@pytest.fixture
def folder_of_rules(tmp_path, monkeypatch):
    """A folder whose files are rules as those of `nanochat/optim/` are."""
    monkeypatch.setattr(nanochat.optim, "__path__", [*nanochat.optim.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"nanochat.optim.{path.stem}", None)
        vars(nanochat.optim).pop(path.stem, None)


@pytest.mark.parametrize("in_a_package", [False, True])
def test_a_copy_of_muon_under_another_name_trains_bit_for_bit_as_muon(
    folder_of_rules, monkeypatch, in_a_package
):
    """Also its schedule of momentum and decay: nothing asks for muon by name."""
    copy_of = folder_of_rules / "muon2.py"
    copy_of.write_text(Path(muon.__file__).read_text())
    name = "muon2"
    if in_a_package:
        (folder_of_rules / "somebody").mkdir()
        copy_of.rename(folder_of_rules / "somebody/muon2.py")
        monkeypatch.syspath_prepend(folder_of_rules)
        name = "somebody.muon2"
    weights, last = [], []
    for rule in ("muon", name):
        groups = settings()
        groups["matrix"]["rule"] = rule
        gpt = network()
        optimizer = build(gpt, groups, weight_decay=1.1)
        train(gpt, optimizer, range(30), total=30)
        weights.append(list(gpt.parameters()))
        (group,) = (g for g in optimizer.param_groups if g["role"] == "matrix")
        last.append((group["momentum"], round(group["weight_decay"], 4)))
        assert (
            shows_length(
                groups, Schedule(warmup_steps=0, warmdown_frac=0.0), 1.1, 9, 50, 99
            ).lower()
            == f"{rule} weight decay of step 1"
        )
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert (
        last[0]
        == last[1]
        == (Schedule().momentum(29, 30), round(1.1 * Schedule().decay(29, 30), 4))
    )


def test_a_rule_says_what_shapes_it_takes_and_one_without_declarations_takes_all(folder_of_rules):
    (folder_of_rules / "sign.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Options:\n    lr: "
        "float\n\n\n"
        "def step(params, grads, state, group):\n"
        "    for p, g in zip(params, grads):\n        p.sub_(g.sign(), alpha=group['lr'])\n"
    )
    groups = settings()
    groups["resid_scalar"] = {"rule": "muon", "lr": 0.02}
    with pytest.raises(
        ValueError, match=r"resid_scalar\.rule=muon.*matrices.*\(4,\); choose from adamw, sign$"
    ):
        build(network(), groups)
    groups["resid_scalar"] = {"rule": "sign", "lr": 0.5}
    gpt = network()
    before = gpt.resid_lambdas.detach().clone()
    optimizer = build(gpt, groups)
    train(gpt, optimizer, [10])
    changed = (gpt.resid_lambdas - before).abs()
    assert torch.allclose(changed, torch.full_like(changed, 0.5 * Schedule().lr(10, 20))), (
        "its rate is scheduled"
    )
    with pytest.raises(ValueError, match=r"resid_scalar\.weight_decay"):
        build(
            network(),
            {**groups, "resid_scalar": {"rule": "sign", "lr": 0.5, "weight_decay": "auto"}},
        )


def test_a_rule_that_schedules_what_it_has_not_or_cannot_be_imported_is_one_line(folder_of_rules):
    rule = folder_of_rules / "odd.py"
    for text, message in (
        (
            "from nanochat.optim.adamw import Options, step\nSCHEDULED = ('momentum',)",
            "odd.SCHEDULED names momentum",
        ),
        (
            "from nanochat.optim.adamw import Options, step\nSCHEDULED = ('betas',)",
            "odd.SCHEDULED names betas",
        ),
        ("1 / 0", r"head\.rule=odd cannot be imported \(ZeroDivisionError"),
        ("import nowhere", r"head\.rule=odd cannot be imported \(ModuleNotFoundError"),
    ):
        rule.write_text(text + "\n")
        sys.modules.pop("nanochat.optim.odd", None)
        importlib.invalidate_caches()
        with pytest.raises(ValueError, match=message) as caught:
            build(network(), {**settings(), "head": {"rule": "odd", "lr": 0.1}})
        assert "\n" not in str(caught.value)


# --- training and state ---


def train(gpt, optimizer, steps, total=20):
    schedule, losses = Schedule(), []
    for step in steps:
        idx = torch.randint(100, (4, 33), generator=torch.Generator().manual_seed(step))
        optimizer.schedule_step(schedule, step, total)
        loss = gpt.loss_sum(idx[:, :-1], idx[:, 1:]) / 128
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("arch", "optim"), [("modern", "muon"), ("classic", "muon_classic"), ("modern", "adamw")]
)
def test_saved_and_loaded_continues_bit_for_bit(arch, optim):
    straight = network(arch)
    optimizer = build(straight, settings(optim), weight_decay=0.1)
    losses = train(straight, optimizer, range(6))

    first = network(arch)
    optimizer = build(first, settings(optim), weight_decay=0.1)
    before = train(first, optimizer, range(3))
    weights, state = through_a_file(first.state_dict()), through_a_file(optimizer.state_dict())
    second = network(arch, seed=7)
    second.load_state_dict(weights)
    optimizer = build(second, settings(optim), weight_decay=0.1)
    optimizer.load_state_dict(state)
    assert before + train(second, optimizer, range(3, 6)) == losses
    for (name, a), b in zip(straight.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_without_its_state_it_does_not_continue_the_same():
    """The test above would notice a state that is not loaded."""
    straight, other = network(), network()
    losses = train(straight, build(straight, settings()), range(6))
    train(other, build(other, settings()), range(3))
    assert train(other, build(other, settings()), range(3, 6)) != losses[3:]


@pytest.mark.parametrize(
    ("arch", "optim"), [("modern", "muon"), ("classic", "muon_classic"), ("modern", "adamw")]
)
def test_a_batch_is_learned_by_heart(arch, optim):
    gpt = network(arch)
    optimizer = build(gpt, settings(optim))
    idx = torch.randint(100, (2, 33), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = gpt.loss_sum(idx[:, :-1], idx[:, 1:]) / 64
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
