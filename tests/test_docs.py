"""What the documents say is so: examples run, numbers are those of the code, lines are lines that
work."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.S)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "src").rglob("*.py")) if ">>> " in p.read_text()],
    ids=lambda p: p.stem,
)
def test_examples_in_docstrings_hold(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT / "src").with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_the_worked_update_rule_of_contributing_trains() -> None:
    """The code of CONTRIBUTING, run as it stands, does what torch.optim.SGD does."""
    text = next(text for text in blocks("CONTRIBUTING.md", "python") if "Polyak" in text)
    from nanochat.runtime.settings import check

    rule: dict = {"__name__": __name__}
    exec(text, rule)
    torch.manual_seed(0)
    mine = torch.randn(4, 3)
    other = torch.nn.Parameter(mine.clone())
    reference = torch.optim.SGD([other], lr=0.1, momentum=0.9)
    group = vars(rule["Options"](lr=0.1))
    state: dict = {mine: rule["new_state"](mine, group)}
    for _ in range(3):
        gradient = torch.randn(4, 3)
        rule["step"]([mine], [gradient], state, group)
        other.grad = gradient
        reference.step()
    assert torch.allclose(mine, other, atol=1e-6)  # the same few fp32 operations in another order
    with pytest.raises(ValueError, match=r"sgd\.momentum=1\.5 must be a number from 0 to below 1"):
        check({**group, "momentum": 1.5}, rule["Options"], "sgd.")


def test_the_worked_reward_of_contributing_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two files of CONTRIBUTING, the first put beside the others of its folder."""
    import nanochat.rl
    from nanochat.inference.engine import Completion
    from nanochat.rl.rewards import Rewards
    from nanochat.rl.rollout import Rollout
    from nanochat.tasks.arithmetic import Arithmetic

    (tmp_path / "brevity.py").write_text(
        next(b for b in blocks("CONTRIBUTING.md", "python") if "class Brevity" in b)
    )
    monkeypatch.setattr(nanochat.rl, "__path__", [*nanochat.rl.__path__, str(tmp_path)])
    yaml = next(text for text in blocks("CONTRIBUTING.md", "yaml") if "Brevity" in text)
    rewards = Rewards({"brevity": OmegaConf.to_container(OmegaConf.create(yaml))})
    rollouts = [
        Rollout(0, 0, {}, [], Completion([], [], "word " * n, "stop")) for n in (20, 30, 50)
    ]
    rewards.give(rollouts, Arithmetic(size=1))
    assert [one.reward for one in rollouts] == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.parametrize("document", ["README.md", "docs/machines.md"])
def test_every_command_of_a_document_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    for module in set(re.findall(r"python -m nanochat\.([\w.]+)", text)):
        path = ROOT / "src" / "nanochat" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)`?", text)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "experiments/LOG.md", "docs/machines.md"]
)
def test_every_path_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    # files that a page has whole
    to_write = re.findall(r"`([\w./-]+)`[^`\n]*:\n\n```(?:python|yaml)\n", text)
    for path in set(
        re.findall(r"`((?:experiments|tests|conf|src|notebooks)/[\w./-]+)`", text)
    ) - set(to_write):
        assert (ROOT / path).exists(), path


def test_every_experiment_folder_is_in_the_log() -> None:
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for folder in (p for p in (ROOT / "experiments").iterdir() if p.is_dir()):
        assert folder.name in log and (folder / "README.md").is_file(), folder.name
