"""What CONTRIBUTING says about adding something works as written: its files are put into a copy of
the code, its commands are run there."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import processes
from tests.train.conftest import TINY, environment, losses, make_corpus, the_run

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()

pytestmark = pytest.mark.slow


@dataclass
class Section:
    files: dict[str, str]  # path in the checkout: content
    commands: list[list[str]]  # words after `python -m`


def sections() -> dict[str, Section]:
    """The parts of CONTRIBUTING with files or commands. A file is a code block after a paragraph
    whose last path is its name."""
    found = {}
    for title, body in re.findall(r"^### (An? .*?)\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S):
        files = {}
        for before, content in re.findall(
            r"(?:^|\n)\n((?:[^\n]+\n)+)\n```(?:python|yaml)\n(.*?)```", body, re.S
        ):
            files[re.findall(r"`((?:src|conf|tests)/[^`\s]+\.\w+)`", before)[-1]] = content
        lines = "\n".join(re.findall(r"```bash\n(.*?)```", body, re.S)).splitlines()
        commands = [
            shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python -m ")
        ]
        if files or commands:
            found[title] = Section(files, commands)
    return found


# Runs the commands that come as JSON, each in a fork of a process that has imported PyTorch and
# this copy of the code.
RUN_ALL = """
import json, os, sys
from pathlib import Path
from tests.processes import run
if __name__ == "__main__":
    env, cwd = dict(os.environ), Path.cwd().parent
    done = [run(words, env=env, cwd=cwd, timeout=120) for words in json.load(sys.stdin)]
    print("RESULTS" + json.dumps([[one.returncode, one.stdout, one.stderr] for one in done]))
"""


class Result(NamedTuple):
    command: str
    code: int
    out: str
    err: str


@dataclass
class Copy:
    root: Path
    base: Path
    results: dict[str, list[Result]]  # by section

    def run(self, title: str, command: int = 1) -> Path:
        """The run folder of a command of a section."""
        return the_run(self.base, run_name(title, command))

    def said(self, title: str) -> list[str]:
        """What the commands of a section printed, all of which worked."""
        for one in self.results[title]:
            assert one.code == 0, f"{one.command}\n{one.out[-1500:]}\n{one.err[-3000:]}"
        return [one.out for one in self.results[title]]


def run_name(title: str, command: int) -> str:
    return f"{title.lower().replace(' ', '-')}-{command}"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of the code with every file of CONTRIBUTING, after all commands."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for section in sections().values():
        for path, content in section.files.items():
            assert not (ROOT / path).exists(), f"{path} is no addition"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(content)
    base = root / "base"
    home = make_inputs(root)
    run = base / "runs" / "it" / "2026-01-01_00-00-00Z"
    save_untrained(run / "checkpoints" / "step_000001")
    (run / "record.json").write_text("{}\n")
    commands = [
        (title, tiny(words, root, run_name(title, number)))
        for title, section in sections().items()
        for number, words in enumerate(section.commands, start=1)
    ]
    env = environment(base, PYTHONPATH=f"{root / 'src'}{os.pathsep}{ROOT}", HOME=str(home))
    # from src, so that Python finds the copy before any installed package
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps([words for _, words in commands]),
        env=env,
        cwd=root / "src",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, list[Result]] = {}
    for (title, words), result in zip(
        commands, json.loads(done.stdout.partition("RESULTS")[2]), strict=True
    ):
        results.setdefault(title, []).append(Result(shlex.join(words), *result))
    return Copy(root, base, results)


def make_inputs(root: Path) -> Path:
    """Texts for the data sources: a home folder with ~/notes, FILE of fortunes, and a corpus."""
    texts = [
        json.loads(line)["text"] for line in (make_corpus(root / "corpus") / "text.jsonl").open()
    ]
    (root / "home" / "notes").mkdir(parents=True)
    (root / "home" / "notes" / "all.md").write_text("\n\n".join(texts))
    (root / "fortunes").write_text("\n%\n".join(texts))
    return root / "home"


def tiny(words: list[str], root: Path, name: str) -> list[str]:
    """The words of a command with what makes it small, and what stands for names in capitals."""
    given = [
        word.replace("FILE", str(root / "fortunes"))
        .replace("FOLDER", str(root / "corpus"))
        .replace("RUN@latest", "it@latest")
        for word in words
    ]
    if given[0] == "nanochat.train":
        small = [
            word
            for word in TINY
            if not word.startswith(("+phase=", "model=d", "trainer=cpu", "save_every"))
        ]
        own = any(word.startswith(("data=", "data.source")) for word in given)
        text = [] if own else ["data=local", f"data.path={root / 'corpus'}"]
        return [*given, *small, *text, "max_steps=4", "save_every=null", f"run_name={name}"]
    if given[0] == "nanochat.data":
        others = [
            f"~data.{part}_tasks.{name}"
            for part in ("train", "val")
            for name in ("smoltalk", "mmlu", "gsm8k")
        ]
        return [*given, *others, "+task@data.val_tasks.reversing=reversing", "rows=1"]
    if given[0] == "nanochat.evaluate":
        text = ["data=local", f"data.path={root / 'corpus'}"]  # the run has none
        return [*given, "evals.tasks.limit=5", "evals.tasks.max_tokens=5", *text]
    return given


def save_untrained(path: Path) -> None:
    """A checkpoint of a tiny model that was never trained."""
    from nanochat.checkpoint import folder
    from nanochat.gpt import GPT, from_depth
    from nanochat.tokenizer import train_bpe

    tokenizer = train_bpe(
        ["Write river backwards. the quick brown fox"] * 3, 275, max_chars=None, doc_cap=None
    )
    config = from_depth(
        1, vocab_size=tokenizer.vocab_size, sequence_len=128, aspect_ratio=32, head_dim=32
    )
    folder.save(path, dict(GPT.build(config).state_dict()), config, tokenizer, {"config": {}})


def test_a_model_size(copy: Copy) -> None:
    copy.said("A model size")
    (sizes,) = (copy.run("A model size") / "checkpoints").glob("*/config.json")
    assert '"n_layer": 5' in sizes.read_text()


def test_a_task(copy: Copy) -> None:
    """Its own test passes; it is shown as mixed in, and scored."""
    tested, shown, scored = copy.said("A task")
    assert "1 passed" in tested
    assert "<|user_start|>Write " in shown and " backwards.<|user_end|>" in shown
    assert "reversing_of: 0 of 5" in scored


def test_a_data_source(copy: Copy) -> None:
    """One YAML, and a class with its YAML: each is trained on, and its documents are counted."""
    notes, fortunes = copy.said("A data source")
    assert "trained 4 steps" in notes and "trained 4 steps" in fortunes
    manifest = json.loads((copy.run("A data source", 2) / "record.json").read_text())["data"]
    assert manifest["source"] == "fortunes" and manifest["settings"] == {"val_fraction": 0.1}


def test_a_callback(copy: Copy) -> None:
    """Lightning's stops by the metric of that name; our own logs every second step."""
    stock, _ = copy.said("A callback")
    assert "trained 4 steps" in stock
    logged = column(copy.run("A callback", 2) / "metrics.csv", "norm/head")
    assert list(logged) == [2, 4] and all(norm > 0 for norm in logged.values())


def test_a_logger(copy: Copy) -> None:
    """Lightning's own file has the losses that ours has."""
    copy.said("A logger")
    run = copy.run("A logger")
    (theirs,) = run.rglob("lightning_logs/*/metrics.csv")
    assert len(losses(theirs.parent)) == 4 and list(losses(theirs.parent).values()) == list(
        losses(run).values()
    )


def test_a_flag_of_the_trainer(copy: Copy) -> None:
    copy.said("A flag of the Trainer")
    assert "optimizer_step" in copy.results["A flag of the Trainer"][0].err, (
        "the table of Lightning's profiler"
    )


def test_a_phase(copy: Copy) -> None:
    """Before it has learned anything each token costs ln V; half of them counted half, so the
    argument that was typed is the one in use."""
    copy.said("A phase")
    first = column(copy.run("A phase") / "metrics.csv", "train/loss")[1]
    assert first == pytest.approx(0.75 * math.log(320), rel=0.01), (
        "weights of the head begin near 0, not at it"
    )


def test_an_evaluation(copy: Copy) -> None:
    """While training and on a checkpoint."""
    _, said = copy.said("An evaluation")
    (while_training,) = column(
        copy.run("An evaluation") / "metrics.csv", "val/first_guess"
    ).values()
    assert 0 <= while_training <= 1 and re.search(r"^first_guess: 0\.\d+$", said, re.M)


def column(path: Path, name: str) -> dict[int, float]:
    """Step -> value, where a file of metrics has one."""
    with path.open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_an_update_rule_for_matrices(copy: Copy) -> None:
    """It trains the matrices; momentum and weight decay of its last step are the schedule's."""
    (said,) = copy.said("An update rule for matrices")
    assert re.search(r"c_q\.weight.* sgd ", said), said
    (group,) = (
        g
        for g in last_optimizer(copy.run("An update rule for matrices"))["param_groups"]
        if g["rule"] == "sgd"
    )
    plan = json.loads((copy.run("An update rule for matrices") / "record.json").read_text())["plan"]
    assert group["momentum"] == pytest.approx(0.85 + 3 / 400 * (0.97 - 0.85)), (
        "up from 0.85 to 0.97 over 400 steps"
    )
    assert group["weight_decay"] == pytest.approx(
        plan["weight_decay"] * (1 + math.cos(math.pi * 3 / 4)) / 2
    )


def last_optimizer(run: Path) -> dict[str, Any]:
    from nanochat.checkpoint import folder

    return folder.read_state(max((run / "checkpoints").glob("step_*")))["optimizer_states"][0]


def test_all_of_it_works_outside_a_checkout(tmp_path: Path) -> None:
    """The same files in a package of the user's and a folder for --config-dir."""
    (tmp_path / "mine").mkdir()
    found = {
        path: content for section in sections().values() for path, content in section.files.items()
    }
    moved = {
        path.removeprefix("src/").removesuffix(".py").replace("/", "."): f"mine.{Path(path).stem}"
        for path in found
        if path.startswith("src/")
    }
    for path, content in found.items():
        for old, new in moved.items():
            content = content.replace(old, new)
            if old.startswith("nanochat.optim."):
                content = content.replace(f"rule: {new.removeprefix('mine.')}", f"rule: {new}")
        place = tmp_path / path if path.startswith("conf/") else tmp_path / "mine" / Path(path).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    make_inputs(tmp_path)
    words = (
        "nanochat.train +phase=base model=d5 trainer=cpu optim=sgd callbacks=norms data=fortunes "
        "data.source.path=FILE"
    )
    more = [
        "--config-dir",
        "conf",
        "callbacks.norms.every=2",
        "+task@evals.tasks.of.reversing=reversing",
        "evals.tasks.limit=2",
    ]
    base = tmp_path / "base"
    done = processes.run(
        [*tiny(words.split(), tmp_path, "fortunes"), *more], env=environment(base), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "mine.sgd" in done.stdout
    assert list(column(the_run(base, "fortunes") / "metrics.csv", "norm/head")) == [2, 4]
    assert (
        json.loads((the_run(base, "fortunes") / "record.json").read_text())["data"]["source"]
        == "fortunes"
    )
    words = [
        "nanochat.evaluate",
        "--config-dir",
        "conf",
        "ckpt=fortunes@latest",
        "evals=reversing",
        "evals.tasks.limit=2",
    ]
    done = processes.run(words, env=environment(base), cwd=tmp_path)
    assert done.returncode == 0 and "reversing_of: 0 of 2" in done.stdout, done.stderr
