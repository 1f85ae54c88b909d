"""What the documents say is so: examples run, numbers are those of the code, lines are lines that work."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_the_worked_update_rule_of_contributing_trains() -> None:
    """The code of CONTRIBUTING, run as it stands, does what torch.optim.SGD does."""
    (text,) = blocks("CONTRIBUTING.md", "python")
    rule: dict = {}
    exec(text, rule)
    torch.manual_seed(0)
    mine = torch.randn(4, 3)
    other = torch.nn.Parameter(mine.clone())
    reference = torch.optim.SGD([other], lr=0.1, momentum=0.9)
    state: dict = {mine: {}}
    group = {**rule["DEFAULTS"], "lr": 0.1}
    rule["check"](group)
    for _ in range(3):
        gradient = torch.randn(4, 3)
        rule["step"]([mine], [gradient], state, group)
        other.grad = gradient
        reference.step()
    assert torch.allclose(mine, other, atol=1e-6)  # the same few fp32 operations in another order
    with pytest.raises(ValueError, match=r"momentum=1\.5"):
        rule["check"]({**group, "momentum": 1.5})


def test_every_command_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for module in set(re.findall(r"python -m nanochat\.(\w+)", text)):
        path = ROOT / "src" / "nanochat" / module
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)`?", text)):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "experiments/LOG.md"])
def test_every_path_a_document_names_is_there(document: str) -> None:
    text = (ROOT / document).read_text()
    for path in re.findall(r"`((?:experiments|tests|conf|src|notebooks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_every_experiment_folder_is_in_the_log() -> None:
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for folder in (p for p in (ROOT / "experiments").iterdir() if p.is_dir()):
        assert folder.name in log and (folder / "README.md").is_file(), folder.name
