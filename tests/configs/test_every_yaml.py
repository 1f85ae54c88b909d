"""Every choice in conf/ composes, and what it names can be built on a CPU. The choices are found by
listing the folder."""

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class
from omegaconf import OmegaConf

from nanochat import optim
from nanochat.commands.configs import known_keys, register
from nanochat.gpt import GPT, build_arch, from_depth
from nanochat.optim.rule import rules
from nanochat.rl.algorithms import build_algorithm
from nanochat.rl.rewards import Rewards
from nanochat.runtime.paths import conf_dir

CONF = conf_dir()


def choices(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml") if not p.stem.startswith("_"))


def composed(*words: str, name: str = "train") -> dict[str, Any]:
    folders = [os.environ.get(key) for key in ("NANOCHAT_BASE_DIR", "NANOCHAT_HUB_DIR")]
    return copy.deepcopy(_composed(name, words, *folders))


@functools.lru_cache  # composing takes 0.15 s, and many tests begin with the same words
def _composed(name: str, words: tuple[str, ...], *folders: str | None) -> dict[str, Any]:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(name, list(words), return_hydra_config=False)
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("model", "arch"),
    [*((m, "modern") for m in choices("model")), *(("d12", a) for a in choices("arch"))],
)
def test_every_model_builds_with_every_arch(model: str, arch: str) -> None:
    config = composed("+phase=base", f"model={model}", f"arch={arch}")
    depth = int(model.removeprefix("d"))
    assert config["model"]["depth"] == depth
    sizes = {k: v for k, v in config["model"].items() if k != "depth"}
    gpt_config = from_depth(depth, vocab_size=32768, arch=build_arch(config["arch"]), **sizes)
    with torch.device("meta"):
        gpt = GPT(gpt_config)
    assert gpt_config.n_layer == depth and sum(p.numel() for p in gpt.parameters()) > 0


@pytest.mark.parametrize("name", choices("optim"))
@pytest.mark.parametrize("arch", choices("arch"))
def test_every_optimizer_builds_and_steps(name: str, arch: str) -> None:
    config = composed("+phase=base", f"optim={name}", f"arch={arch}")
    gpt = GPT.build(
        from_depth(
            2,
            vocab_size=300,
            sequence_len=32,
            head_dim=32,
            aspect_ratio=32,
            arch=build_arch(config["arch"]),
        )
    )
    optimizer = optim.build(gpt, config["optim"]["groups"], weight_decay=0.1)
    assert sorted(n for g in optimizer.param_groups for n in g["names"]) == sorted(
        n for n, _ in gpt.named_parameters()
    )
    idx = torch.randint(0, 300, (2, 33))
    schedule, first = optim.Schedule(**config["optim"]["schedule"]), None
    for step in range(10):
        loss = gpt.loss_sum(idx[:, :-1], idx[:, 1:]) / 64
        first = first or loss.item()
        loss.backward()
        optimizer.schedule_step(schedule, step, 10)
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < first - 0.1, "ten steps on one batch lower its loss"


@pytest.mark.parametrize(
    ("phase", "trainer"),
    [*((p, "cpu") for p in choices("phase")), *(("base", t) for t in choices("trainer"))],
)
def test_every_phase_and_every_trainer_compose(phase: str, trainer: str) -> None:
    config = composed(f"+phase={phase}", f"trainer={trainer}", "model=d4")
    assert config["phase"] == phase.partition("_")[0] and get_class(config["module"]["_target_"])
    assert config["trainer"]["devices"] >= 1 and config["trainer"]["accelerator"] in (
        "cpu",
        "gpu",
        "mps",
    )


@pytest.mark.parametrize("data", choices("data"))
def test_every_data_composes(data: str) -> None:
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "train", ["+phase=rl" if data == "questions" else "+phase=base", f"data={data}"]
        )
    assert callable(get_class_or_function(cfg.data._target_))
    common = (
        {"task", "micro_tokens"} if data == "questions" else {"seed", "rows_per_device", "packing"}
    )
    assert {"sequence_len"} | common <= set(cfg.data)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task", [name for name in choices("task") if name not in ("jsonl", "messages")]
)
def test_every_task_can_be_the_one_of_rl(task: str) -> None:
    assert composed("+phase=rl", f"task={task}")["data"]["task"]["_target_"].startswith(
        "nanochat.tasks."
    )


@pytest.mark.parametrize("algo", choices("algo"))
def test_every_algorithm_is_one(algo: str) -> None:
    config = composed("+phase=rl", f"algo={algo}")
    assert build_algorithm(config["algo"]).name == algo
    assert config["rewards"]["answer"]["grader"] == ("strict" if algo == "nanochat" else "lenient")


@pytest.mark.parametrize("reward", choices("reward"))
def test_every_reward_gives_a_number_for_each_rollout(reward: str) -> None:
    config = composed(
        "+phase=rl", *([] if reward == "answer" else [f"+reward@rewards.{reward}={reward}"])
    )
    assert set(Rewards(config["rewards"]).of) == {"answer", reward}


def get_class_or_function(path: str) -> Any:
    from hydra.utils import get_method

    return get_method(path)


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    config_words = [f"experiment={experiment}"]
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", config_words)
    assert cfg.phase in choices("phase") and cfg.run_name


def test_every_command_has_a_config_and_every_config_a_command() -> None:
    package = CONF.parent / "src" / "nanochat" if (CONF.parent / "src").is_dir() else CONF.parent
    commands = {p.stem for p in package.glob("*.py") if p.stem != "__init__"} | {
        p.parent.name for p in package.glob("*/__main__.py")
    }
    assert {p.stem for p in CONF.glob("*.yaml")} == commands


def test_every_update_rule_is_used_by_a_config() -> None:
    used = {
        g["rule"]
        for name in choices("optim")
        for g in composed("+phase=base", f"optim={name}")["optim"]["groups"].values()
    }
    assert used == set(rules())


@pytest.mark.slow
def test_the_line_of_the_design_works_as_written() -> None:
    """Composed, planned and shared out over 8 processes, without the hardware: the numbers are
    nanochat's for d20."""
    command = [sys.executable, "-m", "nanochat.train", "+phase=base", "model=d20", "trainer=8xh100"]
    done = subprocess.run([*command, "dry_run=true"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    for part in (
        "896,533,746",
        "4,980 steps",
        "1,048,576 tokens = 32 rows x 2,048 tokens x 8 processes x 2 accumulated",
        "x 1.4142",
        "0.1002",
    ):
        assert part in text, (part, text)


def sizes(config: dict[str, Any]) -> tuple[Any, ...]:
    of_tokenizer, length = config["tokenizer"]["auto_vocab_size"], config["plan"]["ratio"]
    return (
        config["size"],
        config["data"]["_target_"].rpartition(".")[2],
        config["model"]["sequence_len"],
        of_tokenizer,
        length,
    )


@pytest.mark.parametrize("trainer", choices("trainer"))
@pytest.mark.parametrize("size", choices("size"))
def test_a_trainer_names_a_machine_and_a_size_what_is_trained_on_it(
    trainer: str, size: str
) -> None:
    """A typed size is the same on every machine, and a machine says nothing but `trainer` and which
    size it takes unasked."""
    typed = composed("+phase=base", f"trainer={trainer}", f"size={size}")
    unasked = dict.fromkeys(("cpu", "cpu_ddp", "cpu_fsdp"), "laptop") | {"mps": "mac"}
    assert (
        sizes(typed)
        == {
            "full": ("full", "shards", 2048, 32768, 12.0),
            "laptop": ("laptop", "pydocs", 512, 8192, 0.5),
            "mac": ("mac", "pydocs", 512, 8192, 4.0),
        }[size]
    )
    plain = composed("+phase=base", f"trainer={trainer}")
    assert plain["size"] == unasked.get(trainer, "full")
    assert plain["size"] != size or plain == typed
    other = composed("+phase=base", "trainer=8xh100", f"size={size}")
    of_machine = {"trainer": None, "compute": None}  # expected_mfu
    assert {**typed, **of_machine} == {**other, **of_machine}


def test_what_is_typed_or_chosen_by_an_experiment_stands_before_the_size() -> None:
    assert composed("+phase=base", "trainer=cpu", "data=local", "data.path=x")["data"][
        "_target_"
    ].endswith("local")
    assert sizes(composed("experiment=demo", "plan.ratio=3"))[2:] == (256, 8192, 3)


def test_known_keys_lists_nested_settings() -> None:
    keys = known_keys("train")
    assert {"model.depth", "optim.groups.matrix.lr", "trainer.devices", "plan.ratio"} <= set(keys)


def test_no_config_computes() -> None:
    """YAML chooses, Python computes: no eval resolver, no arithmetic (style.md)."""
    assert not [p for p in Path(CONF).rglob("*.yaml") if "${eval:" in p.read_text()]
