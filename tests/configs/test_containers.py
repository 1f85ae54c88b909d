"""What docker/ and experiments/cloud/ run are commands and settings that are there.
Neither an engine nor a cloud is asked; docs/machines.md says what was run."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat import evaluate, pipeline
from tests.configs.test_every_yaml import composed

ROOT = Path(__file__).parents[2]
DOCKER, CLOUD = ROOT / "docker", ROOT / "experiments" / "cloud"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^${}]*))?\}")


def filled(text: str, given: dict[str, str]) -> str:
    """`${NAME:-default}` and `${NAME:?error}` of a compose file, one in the other too."""

    def value(found: re.Match[str]) -> str:
        name, kind, more = found.groups()
        if kind == "?" and not given.get(name):
            raise ValueError(f"{name} {more}")
        return given.get(name) or (more or "" if kind == "-" else "")

    while (new := VARIABLE.sub(value, text)) != text:
        text = new
    return text


def compose_file(name: str, **given: str) -> dict[str, Any]:
    """A compose file with its service as it is with what it extends."""
    parsed = yaml.safe_load(filled((DOCKER / name).read_text(encoding="utf-8"), given))
    for service in parsed["services"].values():
        while base := service.pop("extends", None):
            file = yaml.safe_load(
                filled((DOCKER / "compose.common.yaml").read_text(encoding="utf-8"), given)
            )
            for key, mine in file["services"][base["service"]].items():
                service.setdefault(key, mine)
    return parsed


def command(words: list[str]) -> dict[str, Any]:
    """The settings of a command line, `nanochat.NAME` and its words, and of every stage of a
    pipeline."""
    name, rest = words[0].removeprefix("nanochat."), words[1:]
    if name == "pipeline":
        config = composed(*pipeline.with_added(rest), name=name)
        for stage, line in config["pipeline"]["stages"].items():
            line = line if isinstance(line, str) else line["run"]
            inner = pipeline.words_of(line, pipeline.added_to(stage, line, config["words"]))
            if inner[0] != "report":
                command([f"nanochat.{inner[0]}", *inner[1:]])
        return config
    return composed(*(evaluate.named(rest) if name == "evaluate" else rest), name=name)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (x.partition(" ") for x in text.splitlines() if x)]


def test_the_image_runs_our_commands_as_an_ordinary_user_and_has_no_build_tools() -> None:
    found = instructions()
    last = max(i for i, (word, _) in enumerate(found) if word == "FROM")
    build, final = found[:last], found[last:]
    assert ("USER", "1000") in final and not any(word == "USER" for word, _ in build)
    assert ("ENTRYPOINT", '["python", "-m"]') in final
    (shown,) = (yaml.safe_load(rest) for word, rest in final if word == "CMD")
    assert command(shown)["delete"] is None
    installs = [rest for word, rest in final if word == "RUN" and re.search("install -|pip", rest)]
    assert all(rest.startswith('if [ -n "$PACKAGES" ]') for rest in installs)
    assert ("ARG", "PACKAGES=") in final  # none unless asked for
    planned = [rest for word, rest in final if rest.startswith("python -m nanochat.train")]
    assert command(shlex.split(planned[0])[2:])["dry_run"] is True


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored, name


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_page_is_that_of_the_checkpoint_in_the_environment(device: str) -> None:
    given = {"NANOCHAT_API_KEY": "k", "NANOCHAT_DEVICE": device, "NANOCHAT_TAG": "d34"}
    given |= {"NANOCHAT_STEP": "best", "NANOCHAT_PORT": "80"}
    web = compose_file("compose.web.yaml", **given)["services"]["web"]
    chat = command(web["command"])
    assert chat["ckpt"] == "sft-d34@best" and chat["api_key"] == "k" and chat["host"] == "0.0.0.0"
    assert web["ports"] == [f"127.0.0.1:80:{chat['port']}"] and web["image"] == f"nanochat:{device}"
    assert web["volumes"] == ["nanochat:/data"] and web["shm_size"] == "8gb"
    assert ("deploy" in web) == (device == "cuda")
    web = compose_file("compose.web.yaml", **given, NANOCHAT_CKPT="karpathy/nanochat-d32")
    assert "ckpt=karpathy/nanochat-d32" in web["services"]["web"]["command"]
    with pytest.raises(ValueError, match="NANOCHAT_API_KEY the password"):
        compose_file("compose.web.yaml")


@pytest.mark.parametrize(
    ("name", "words"), [("", ""), ("speedrun", "-- trainer=1xh100 base:model=d12")]
)
def test_the_chain_of_compose_train_composes(name: str, words: str) -> None:
    given = {"NANOCHAT_PIPELINE": name, "NANOCHAT_WORDS": words}
    train = compose_file("compose.train.yaml", **given)["services"]["train"]
    config = command(shlex.split(train["command"]))
    assert config["words"] == shlex.split(words)[1:]


@pytest.mark.parametrize("file", ["skypilot.yaml", "dstack.yml"])
def test_the_command_of_a_cloud_composes(file: str) -> None:
    cloud = yaml.safe_load((CLOUD / file).read_text(encoding="utf-8"))
    lines = cloud["run"].splitlines() if "run" in cloud else cloud["commands"]
    pairs = (
        cloud["envs"].items()
        if "envs" in cloud
        else (x.split("=") for x in cloud["env"] if "=" in x)
    )
    given = {key: str(value) for key, value in pairs} | {"PRICE_PER_GPU_HOUR": "2.5"}
    line = next(line for line in lines if "nanochat.pipeline" in line).partition(" -m ")[2]
    config = command(shlex.split(re.sub(r"\$(\w+)", lambda m: given[m[1]], line)))
    assert config["words"] == ["price_per_gpu_hour=2.5"]
    assert any("make setup" in line for line in [*lines, cloud.get("setup", "")])
