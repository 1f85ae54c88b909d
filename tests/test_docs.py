"""What the documents say is so: examples run, numbers are those of the code, lines are lines that work."""

import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.S)


@pytest.mark.parametrize(
    "path", [p for p in sorted((ROOT / "src").rglob("*.py")) if ">>> " in p.read_text()], ids=lambda p: p.stem
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


def test_the_worked_reward_of_contributing_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two files of CONTRIBUTING, the first put beside the others of its folder."""
    import nanochat.rl
    from nanochat.inference.engine import Completion
    from nanochat.rl.rewards import Rewards
    from nanochat.rl.rollout import Rollout
    from nanochat.tasks.arithmetic import Arithmetic

    (tmp_path / "brevity.py").write_text(next(b for b in blocks("CONTRIBUTING.md", "python") if "class Brevity" in b))
    monkeypatch.setattr(nanochat.rl, "__path__", [*nanochat.rl.__path__, str(tmp_path)])
    yaml = next(text for text in blocks("CONTRIBUTING.md", "yaml") if "Brevity" in text)
    rewards = Rewards({"brevity": OmegaConf.to_container(OmegaConf.create(yaml))})
    rollouts = [Rollout(0, 0, {}, [], Completion([], [], "word " * n, "stop")) for n in (20, 30, 50)]
    rewards.give(rollouts, Arithmetic(size=1))
    assert [one.reward for one in rollouts] == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.slow
def test_the_worked_task_of_contributing_is_trained_on(tmp_path: Path) -> None:
    """The files of CONTRIBUTING, put where it says into a copy of the code: its test passes, it is found, mixed in and shown."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code, test = (
        next(b for b in blocks("CONTRIBUTING.md", "python") if mark in b)
        for mark in ("class Reversing", "Reversing(size=9)[3]")
    )
    yaml = next(text for text in blocks("CONTRIBUTING.md", "yaml") if "reversing" in text)
    (tmp_path / "src/nanochat/tasks/reversing.py").write_text(code)
    (tmp_path / "conf/task/reversing.yaml").write_text(yaml)
    (tmp_path / "test_reversing.py").write_text(test)
    mixture = tmp_path / "conf/data/sft_mix.yaml"
    (line,) = re.findall(r"`(- /task@train_tasks\.reversing: reversing)`", (ROOT / "CONTRIBUTING.md").read_text())
    mixture.write_text(mixture.read_text().replace("  - _chat\n", f"  - _chat\n  {line}\n"))
    base = tmp_path / "base"
    save_untrained(base / "runs" / "it" / "now" / "checkpoints" / "step_000001")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", *words], env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("pytest", "-q", "-p", "no:cacheprovider", "test_reversing.py")
    ckpt = f"ckpt={base / 'runs/it/now'}"
    others = [f"~data.{part}_tasks.{name}" for part in ("train", "val") for name in ("smoltalk", "mmlu", "gsm8k")]
    typed = "+task@data.val_tasks.reversing=reversing"
    said = run("nanochat.data", "data=sft_mix", ckpt, "show=batch", "rows=1", *others, typed)
    assert "<|user_start|>Write " in said and " backwards.<|user_end|>" in said
    assert "reversing_of: 0 of 5" in run(
        "nanochat.evaluate", ckpt, "evals=reversing", "evals.tasks.limit=5", "evals.tasks.max_tokens=5"
    )


def save_untrained(path: Path) -> None:
    """A checkpoint of a tiny model that was never trained."""
    from nanochat.checkpoint import folder
    from nanochat.gpt import GPT, from_depth
    from nanochat.tokenizer import train_bpe

    tokenizer = train_bpe(["Write river backwards. the quick brown fox"] * 3, 275, max_chars=None, doc_cap=None)
    config = from_depth(1, vocab_size=tokenizer.vocab_size, sequence_len=128, aspect_ratio=32, head_dim=32)
    folder.save(path, dict(GPT.build(config).state_dict()), config, tokenizer, {"config": {}})


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
