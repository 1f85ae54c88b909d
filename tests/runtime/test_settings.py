"""Every setting is checked when composed: what a user may type, what it becomes, and the one line
of what is wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field

from nanochat.commands import app, settings_page
from nanochat.commands.configs import compose_command
from nanochat.commands.schema import COMMANDS
from nanochat.runtime.settings import Settings, check, described, listed, passes_on

BASE = ["+phase=base", "trainer=cpu", "model=d2"]
RL = ["+phase=rl", "trainer=cpu"]
SFT = ["+phase=sft", "trainer=cpu"]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What a command does with its words before anything is built: the checked config, or the line
    of an error."""

    def call(*words: str, name: str = "train") -> Any:
        monkeypatch.setattr(sys, "argv", [name, *words])
        try:
            for word in words:
                app.check_choice(word)
            cfg = compose_command(name, [app.as_typed(word) for word in words])
            app.take_checked(cfg, name)
        except app.USER_ERRORS as error:
            return app.one_line(error, name)
        return OmegaConf.to_container(cfg, resolve=True)

    return call


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("arch.bigram='a b'", "arch.bigram=a b is not known; choose from true, false"),
        ("arch.lambdas=0.5", "arch.lambdas=0.5 is not known; choose from true, false"),
        ("arch.value_embeds=nan", "arch.value_embeds=nan is not known"),
        ("arch.smear=null", "arch.smear=null is not known; choose from true, false"),
        (
            "arch.qk_scale=1e30",
            "arch.qk_scale=1e+30 must be a number above 0 and at most 100; try arch.qk_scale=100",
        ),
        (
            "arch.resid_init=-1",
            "arch.resid_init=-1 must be a list of 2, each a number from -100 to 100",
        ),
        ("arch.x0_init=[0.1]", "arch.x0_init=[0.1] must be a list of 2"),
        (
            "eval_tokens=-1",
            "eval_tokens=-1 must be a whole number from 1 up, or null; try eval_tokens=1",
        ),
        (
            "trainer.gradient_clip_val=-1",
            "trainer.gradient_clip_val=-1 must be a number above 0, or null",
        ),
        ("sample.temperature=-1", "sample.temperature=-1 must be a number from 0"),
        (
            "compute.precision=fp16",
            "compute.precision=fp16 is not known; choose from auto, bf16, fp32",
        ),
        (
            "trainer.devices=0",
            "trainer.devices=0 must be a whole number from 1 to 4,096; try trainer.devices=1",
        ),
        ("trainer.devices=-1", "try trainer.devices=1"),
        (
            "trainer.precision=bf16",
            "trainer.precision is not a setting; did you mean compute.precision=…?",
        ),
        (
            "trainer.compile=false",
            "trainer.compile is not a setting; did you mean compute.compile=…?",
        ),
        (
            "+trainer.attention=sdpa",
            "trainer.attention cannot be set: it is compute.attention=… now",
        ),
        ("+trainer.max_steps=5", "trainer.max_steps cannot be set: max_steps=N, plan.tokens=N"),
        (
            "+trainer.detect_anomoly=true",
            "trainer.detect_anomoly is not a setting; did you mean trainer.detect_anomaly=…?",
        ),
        (
            "trainer.strategy=zero",
            "trainer.strategy=zero is not known; choose from auto, ddp, fsdp",
        ),
        (
            "trainer.profiler=fast",
            "trainer.profiler=fast must be simple, advanced, pytorch, a group of settings, or null",
        ),
        ("trainer.max_time=5m", "trainer.max_time=5m must be DAYS:HOURS:MINUTES:SECONDS or null"),
        ("trainer.num_nodes=0", "trainer.num_nodes=0 must be a whole number from 1 to 4,096"),
        ("compute.expected_mfu=0", "compute.expected_mfu=0 must be a number above 0 and at most 1"),
        ("plan.tokens=inf", "plan.tokens=inf must be a number above 0, or null"),
        ("plan.ratio=nan", "plan.ratio=nan must be a number above 0, or null"),
        (
            "tokenizer.vocab_size=99999999999999999999",
            "vocab_size=99999999999999999999 must be a whole number of at most",
        ),
        ("optim.groups.head.betas=0.9", "optim.groups.head.betas=0.9 must be a list of 2"),
        (
            "optim.groups.head.scale_width=maybe",
            "optim.groups.head.scale_width=maybe is not known; choose from true, false",
        ),
        ("optim.groups.matrix.lr=fast", "optim.groups.matrix.lr=fast must be a number from 0"),
        (
            "optim.groups.matrix.rule=lion9",
            "optim.groups.matrix.rule=lion9 is not known; choose from adamw, muon",
        ),
        (
            "+optim.groups.matrix.lrr=1",
            "optim.groups.matrix.lrr is not a setting; did you mean optim.groups.matrix.lr=…?",
        ),
        (
            "+optim.groups.tail.lr=1",
            "optim.groups.tail is not a role of any parameter; the roles are embedding",
        ),
        ("data.seed=1e30", "data.seed=1e+30 must be a whole number from 0 up"),
        ("data.num_workers=abc", "data.num_workers=abc must be a whole number from 0 to 1,024"),
        ("seed=-1", "seed=-1 must be a whole number from 0 up; try seed=0"),
        ("max_steps=true", "max_steps=true must be a whole number"),
        (
            "max_steps=1.5",
            "max_steps=1.5 must be a whole number from 1 up, or null; try max_steps=2",
        ),
        ("evals.tasks.of=2.7", "evals.tasks.of=2.7 must be a group of settings"),
        ("phase=[[1]]", "phase=[[1]] is not known; choose from: base, mid, rl, sft, sft_classic"),
        ("data=null", "data=null is not known; choose from: climbmix"),
        ("arch=5", "arch=5 is not known; choose from: classic, e1, e2"),
        ("model=d3", "model=d3 is not known; model.depth=3 makes a model of any depth"),
        ("model.depth=100000", "model.depth=100000 must be a whole number from 1 to 512"),
        (
            "lr=0.1",
            "lr is not a setting; did you mean optim.groups.head.lr=…? (8 settings are called lr)",
        ),
        ("+module.z=7", "module.z is not a setting of NextTokenModule"),
        ("+module.gpt=7", "module.gpt is not a setting of NextTokenModule"),
        ("data._target_=no.such", "data._target_=no.such: there is no object with this name"),
        (
            "rollout.samples=3",
            "rollout.samples is a setting of phase rl; add +phase=rl, or drop it",
        ),
        ("+rollout.samples=3", "rollout is a setting of phase rl; add +phase=rl, or drop it"),
        ("force=true", "force is a setting of phase rl; add +phase=rl, or drop it"),
        ("algo=dapo", "algo is a setting of phase rl; add +phase=rl, or drop it"),
        ("task=gsm8k", "task is a setting of phase rl; add +phase=rl, or drop it"),
        (
            "data=questions",
            "this data takes task, a setting of phase rl; add +phase=rl, or choose another data=…",
        ),
        (
            "data=sft_mix",
            "data is a ChatDataModule here, and this phase trains on text; choose data=pydocs",
        ),
        (
            "recipe._target_=no.such",
            (
                "recipe._target_=no.such: there is no object with this name; see the files in "
                "conf/phase/"
            ),
        ),
        ("logger.csv=5", "logger.csv=5 must be a group of settings"),
        (
            "optim.groups.head.rule=null",
            "optim.groups.head.rule=null is not known; choose from adamw, muon",
        ),
    ],
)
def test_one_line(take: Callable[..., Any], word: str, line: str) -> None:
    said = take(*BASE, word)
    assert isinstance(said, str) and line in said and "\n" not in said


@pytest.mark.parametrize(
    "name", ["a/../../../x", "../x", "/x", ".", "..", "", ".hidden", "a b", "a\\b", "-rf", "a\nb"]
)
def test_a_run_name_is_one_folder(name: str) -> None:
    with pytest.raises(ValueError, match="must be the name of one folder"):
        check({"run_name": name}, {"run_name": _setting("run_name")})
    assert check({"run_name": "base-d4_v1.2"}, {"run_name": _setting("run_name")}) == {
        "run_name": "base-d4_v1.2"
    }


def _setting(key: str) -> Any:
    from nanochat.runtime.settings import parameters

    return parameters(COMMANDS["train"])[key]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            [*RL, "rewards.answer.grader=x"],
            "rewards.answer.grader=x is not known; choose from lenient, strict",
        ),
        ([*RL, "rewards.answer.weight=abc"], "rewards.answer.weight=abc must be a number"),
        ([*RL, "rollout.samples=1"], "rollout.samples=1 must be a whole number from 2 up"),
        ([*RL, "algo.kl=-1"], "algo.kl=-1 must be a number from 0 up; try algo.kl=0"),
        (
            [*RL, "rollout=null"],
            "rollout must be a group of settings; set one of it, as rollout.max_tokens=…",
        ),
        ([*RL, "+algo.klipp=1"], "algo.klipp is not a setting; did you mean algo."),
        (
            [*RL, "task.repeat=0"],
            "task.repeat=0 must be a whole number from 1 up; try task.repeat=1",
        ),
        ([*RL, "+task.size=5"], "task.size is not a setting"),
        (
            [*RL, "task=arithmetic", "task.digits=12"],
            "task.digits=12 must be a whole number from 1 to 9; try task.digits=9",
        ),
        (
            [*RL, "task=arithmetic", "task.size=2.5"],
            "task.size=2.5 must be a whole number from 1 to 10,000,000",
        ),
        (
            [*SFT, "data.train_tasks.gsm8k.stop=0"],
            "data.train_tasks.gsm8k.stop=0 must be a whole number from 1 up, or null",
        ),
        (
            [*SFT, "+data.train_tasks.gsm8k.foo=1"],
            "data.train_tasks.gsm8k.foo is not a setting of GSM8K; there are: dataset",
        ),
        (
            [*SFT, "data.packing=loose"],
            "data.packing=loose is not known; choose from best_fit, single, stream",
        ),
        (
            [*BASE, "data=local", "data.path=x", "data.documents=word"],
            "data.documents=word is not known; choose from file, paragraph, line",
        ),
        (
            [*BASE, "logger=wandb", "+logger.wandb.projct=x"],
            "logger.wandb.projct is not a setting; did you mean logger.wandb.project=…?",
        ),
        (
            [*BASE, "logger=wandb", "logger.wandb.offline=5"],
            "logger.wandb.offline=5 is not known; choose from true, false",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_settings_of_what_is_built_are_those_of_its_constructor(
    take: Callable[..., Any], words: list[str], line: str
) -> None:
    assert line in take(*words)


@pytest.mark.parametrize(
    ("command", "word", "line"),
    [
        ("sample", "temperature=-1", "temperature=-1 must be a number from 0"),
        (
            "sample",
            "device=tpu",
            "device=tpu must be auto, cpu, cuda, cuda:NUMBER or mps; try device=auto",
        ),
        (
            "cli",
            "top_p=1.5",
            "top_p=1.5 must be a number above 0 and at most 1, or null; try top_p=1",
        ),
        (
            "chat",
            "port=99999",
            "port=99999 must be a whole number from 0 to 65,535; try port=65535",
        ),
        ("chat", "limits.queue=many", "limits.queue=many must be a whole number from 0 up"),
        ("bench", "batches=[0]", "batches=[0] must be a whole number from 1 up"),
        (
            "evaluate",
            "rows_per_device=0",
            "rows_per_device=0 must be a whole number from 1 up; try rows_per_device=1",
        ),
        ("data", "show=all", "show=all is not known; choose from stats, batch, ledger, download"),
        ("tokenizer", "kind=words", "kind=words is not known; choose from bpe, char"),
    ],
)
def test_every_command_is_checked(
    take: Callable[..., Any], command: str, word: str, line: str
) -> None:
    needs = [] if command in ("bench", "data", "tokenizer") else ["ckpt=x"]
    assert line in take(*needs, word, name=command)


def test_values_are_what_a_user_means(take: Callable[..., Any]) -> None:
    config = take(
        *BASE,
        "max_steps=1e3",
        "arch.smear=no",
        "optim.groups.head.scale_width=off",
        "compute.compile=yes",
        "logger=null",
        "seed=7",
    )
    assert config["max_steps"] == 1000 and isinstance(config["max_steps"], int)
    assert (
        config["arch"]["smear"] is False
        and config["optim"]["groups"]["head"]["scale_width"] is False
    )
    assert config["compute"]["compile"] is True and config["logger"] is None
    assert config["data"]["seed"] == 7 and config["sample"]["seed"] == 7, (
        "what refers to another setting still does"
    )


def test_the_first_of_several_is_named_and_the_others_counted(take: Callable[..., Any]) -> None:
    line = take(*BASE, "max_steps=0", "eval_tokens=-1", "model.depth=0")
    assert line.startswith("max_steps=0 must be") and line.endswith("(2 more settings are wrong)")


class Inner:
    def __init__(
        self, *, size: Annotated[int, Field(ge=1)], word: Literal["a", "b"] = "a"
    ) -> None: ...


class Outer(Inner):
    def __init__(self, deep: bool, **more: Any) -> None: ...


@passes_on(Outer)
def made(path: str, **options: Any) -> None: ...


class Holder(Settings):
    one: dict


def test_arguments_are_followed_to_where_they_are_passed_on() -> None:
    from nanochat.runtime.settings import parameters

    assert list(parameters(Outer)) == ["deep", "size", "word"]
    assert list(parameters(made)) == ["path", "size", "word"], (
        "what only a position can name is not a setting"
    )
    assert check({"path": "x", "size": 2.0, "word": "b"}, made) == {
        "path": "x",
        "size": 2,
        "word": "b",
    }
    with pytest.raises(ValueError, match="size must be given"):
        check({"path": "x"}, made)
    with pytest.raises(ValueError, match=r"wrd is not a setting; did you mean word=…\?"):
        check({"path": "x", "size": 1, "wrd": "a"}, made)


@pytest.mark.parametrize("value", [True, "5", 2.5, 2**63, float("nan"), None, [1], {}])
def test_what_is_no_whole_number(value: Any) -> None:
    with pytest.raises(ValueError, match=r"size=.* must be a whole number from 1 up"):
        check({"size": value}, Inner)


def test_a_module_argument_is_given_to_the_phase(
    take: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An argument that a phase takes is a setting, checked by its type, and reaches the
    constructor."""
    from nanochat.modules import next_token
    from nanochat.runs.recipe import Recipe

    class Softer(next_token.NextTokenModule):
        def __init__(
            self, *args: Any, smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0, **more: Any
        ) -> None:
            super().__init__(*args, **more)
            self.smoothing = smoothing

    monkeypatch.setattr(next_token, "Softer", Softer, raising=False)
    target = "module._target_=nanochat.modules.next_token.Softer"
    assert "module.smoothing=2 must be a number from 0 to below 1" in take(
        *BASE, target, "+module.smoothing=2"
    )
    config = take(*BASE, target, "+module.smoothing=0.25")
    recipe = object.__new__(Recipe)
    recipe.config = config
    recipe.__dict__["plan"] = type("Plan", (), {"steps": 1, "lr_factor": 1.0, "weight_decay": 0.0})
    from nanochat.gpt import GPT, from_depth

    gpt = GPT(from_depth(1, vocab_size=64, sequence_len=8, aspect_ratio=32, head_dim=32))
    assert recipe.build_module(gpt).smoothing == 0.25


def test_a_base_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    line = app.one_line(PermissionError(13, "Permission denied", str(tmp_path / "base" / "runs")))
    assert (
        line.startswith(f"{tmp_path / 'base'} cannot be written to (permission denied")
        and "set NANOCHAT_BASE_DIR" in line
    )


def test_every_setting_has_a_rule_and_a_meaning() -> None:
    for command, compositions in settings_page.PAGES.items():
        for words in compositions:
            for key, _, rule, meaning in settings_page.settings_rows(command, words):
                assert rule and rule != "anything" and meaning, (command, key, rule, meaning)


@pytest.mark.slow
def test_the_page_of_settings_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert page.read_text() == settings_page.settings_markdown(), (
        "run `python -m nanochat.commands.settings_page`"
    )


def test_help_shows_the_settings_of_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "+phase=rl", "--help"])
    app.command("train", lambda cfg: pytest.fail("nothing is run"))()
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("rollout.samples=")]
    assert (
        line.split()
        == "rollout.samples=16 a whole number from 2 up; answers to each: a group".split()
    )


def test_rules_in_words() -> None:
    assert (
        described(Annotated[float, Field(gt=0, le=1)] | None)
        == "a number above 0 and at most 1, or null"
    )
    assert described(bool | Literal["auto"]) == "true, false or auto"
    assert [row[0] for row in listed({"one": {}}, Holder)] == ["one"]
