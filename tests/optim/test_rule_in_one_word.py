"""`optim.groups.ROLE.rule=RULE` alone changes the rule: options of the old one fall away, those of
the new one are its preset's."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from nanochat import optim
from nanochat.commands.configs import choices, compose_choice, register
from nanochat.commands.rules import change_rules
from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.runs import show
from nanochat.runs.plan import make_plan
from nanochat.runtime.paths import conf_dir


def groups(*words: str, chosen: str = "muon") -> dict[str, Any]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", ["+phase=base", "model=d2", f"optim={chosen}", *words])
        change_rules(
            cfg,
            lambda key: [w for w in words if w.startswith((f"{key}=", f"{key}."))],
            lambda name: compose_choice("optim", name),
            chosen,
            choices("optim"),
        )
    return OmegaConf.to_container(cfg.optim.groups, resolve=True)  # type: ignore[return-value]


def preset(name: str) -> dict[str, Any]:
    return compose_choice("optim", name)["groups"]


@pytest.mark.parametrize(
    ("chosen", "words", "changed"),
    [
        ("muon", ["rule=adamw"], preset("adamw")["matrix"]),
        ("muon_classic", ["rule=adamw"], preset("adamw")["matrix"]),
        ("muon", ["rule=adamw", "lr=0.5"], {**preset("adamw")["matrix"], "lr": 0.5}),
        ("adamw", ["rule=muon"], preset("muon")["matrix"]),
        ("adamw", ["rule=adamw"], preset("adamw")["matrix"]),
        ("muon", ["rule=muon", "lr=0.5"], {**preset("muon")["matrix"], "lr": 0.5}),
        ("muon_classic", ["rule=muon"], preset("muon_classic")["matrix"]),
        (
            "muon",
            ["rule=adamw", "ns_steps=4"],
            {**preset("adamw")["matrix"], "ns_steps": 4},
        ),  # typed: refused below
        ("muon", ["rule=nothing"], {"rule": "nothing"}),
    ],
)
def test_one_word_changes_the_rule(chosen: str, words: list[str], changed: dict[str, Any]) -> None:
    found = groups(*[f"optim.groups.matrix.{word}" for word in words], chosen=chosen)
    assert found == {**preset(chosen), "matrix": changed}


def test_what_it_makes_is_an_optimizer_and_a_typed_option_of_the_old_rule_is_refused() -> None:
    gpt = GPT.build(from_depth(2, vocab_size=300, arch=build_arch({})), seed=0)
    made = optim.build(gpt, groups("optim.groups.matrix.rule=adamw"))
    assert {g["rule"] for g in made.param_groups} == {"adamw"}
    with pytest.raises(ValueError, match=r"optim\.groups\.matrix\.ns_steps"):
        optim.build(gpt, groups("optim.groups.matrix.rule=adamw", "optim.groups.matrix.ns_steps=4"))


@pytest.mark.parametrize(
    ("words", "chosen", "rates"),
    [
        ([], "muon", "x 0.5000 for the batch size; Muon weight decay"),
        (["optim.groups.matrix.rule=adamw"], "muon", "x 0.5000 for the batch size"),
        ([], "adamw", "as the optimizer's groups have them"),
    ],
)
def test_the_plan_speaks_of_the_rules_there_are(
    words, chosen, rates, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = from_depth(2, vocab_size=300, arch=build_arch({}))
    plan = make_plan(sizes, sizes, max_steps=10, batch_tokens=2048)
    show.planned("r", plan, batch="", text="", machine=None, groups=groups(*words, chosen=chosen))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "│ rates" in line]
    assert rates in line and line.count("Muon") == rates.count("Muon")
