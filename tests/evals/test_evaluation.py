"""One protocol for the callback and the command: an evaluation is a file and a YAML, and both ways
give its numbers."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.evals.test_two_processes import LENGTHS, V, batches, network
from tests.test_additions import ROOT, save_untrained

from nanochat.evals.bpb import BitsPerByte, bits_per_byte
from nanochat.evals.chat import Answers, numbers
from nanochat.evals.evaluation import Context, build_evaluations
from nanochat.evals.pass_at_k import PassAtK
from nanochat.evals.sample import Samples
from nanochat.gpt import GPT, from_depth
from nanochat.tasks.arithmetic import Arithmetic
from nanochat.tokenizer.tokenizer import BPETokenizer

SUMS = {
    "_target_": "nanochat.tasks.arithmetic.Arithmetic",
    "name": "sums",
    "size": 6,
    "digits": 1,
    "split": "train",
}
CODE = '''"""Norms of the weights."""

from nanochat.evals.evaluation import Context, Evaluation, Result
from nanochat.runtime.settings import Count


class Norms(Evaluation):
    def __init__(self, first: Count) -> None:
        self.first = first

    def __call__(self, context: Context) -> Result:
        parameters = list(context.gpt.parameters())[: self.first]
        return {f"norm_{n}": float(p.norm()) for n, p in enumerate(parameters)}
'''
YAML = "_target_: nanochat.evals.norms.Norms\nevery: 1\nfirst: 2\n"


@pytest.fixture(scope="module")
def chat() -> Context:
    tokenizer = BPETokenizer([])
    gpt = GPT.build(
        from_depth(
            1, vocab_size=tokenizer.vocab_size, sequence_len=128, aspect_ratio=32, head_dim=32
        )
    )
    return Context(gpt, tokenizer, lambda: pytest.fail("no data are needed"))


def test_bpb_is_that_of_the_first_tokens_of_the_data() -> None:
    asked = []
    data = SimpleNamespace(split_batches=lambda *given: asked.append(given) or batches(range(3)))
    context = Context(network(), SimpleNamespace(token_bytes=LENGTHS, vocab_size=V), lambda: data)  # type: ignore[arg-type]
    assert BitsPerByte(48)(context) == bits_per_byte(
        context.gpt, batches(range(3)), LENGTHS
    ) and asked == [("val", 48)]


def test_answers_are_those_of_each_task_of_the_split_that_is_named(chat: Context) -> None:
    found = Answers({"sums": SUMS, "gone": None}, limit=4, max_tokens=3)(chat)  # type: ignore[dict-item]
    task = Arithmetic(name="sums", size=6, digits=1, split="test")
    items = Answers({}, limit=4, max_tokens=3).items(chat, task)
    assert found == {f"sums_{key}": value for key, value in numbers(items).items()}
    assert found["sums_of"] == f"{sum(item.correct for item in items):g} of 4"
    assert (
        Answers({"sums": SUMS}).of["sums"].settings()
        == task.settings()
        != Arithmetic(**_without_target()).settings()
    )


def test_what_cannot_be_scored_is_refused_when_built() -> None:
    talk = {
        "_target_": "nanochat.tasks.messages.Messages",
        "name": "dolly",
        "dataset": "x/y",
        "split": "train",
    }
    for build in (lambda: Answers({"dolly": talk}), lambda: PassAtK(talk)):
        with pytest.raises(
            ValueError, match="dolly cannot be scored: nothing in it is right or wrong"
        ):
            build()
    with pytest.raises(
        ValueError,
        match=r"evals\.pass_at_k\.task must be given: add \+task@evals\.pass_at_k\.task=",
    ):
        PassAtK(None)


def test_samples_are_as_many_as_asked_for_each_prompt(chat: Context) -> None:
    shown = Samples(["a", "b"], num_samples=2, max_tokens=2)(chat)["sample"]
    assert isinstance(shown, list) and [text[1] for text in shown] == ["a", "a", "b", "b"]


def test_null_leaves_one_out_and_every_is_not_given_to_it() -> None:
    one = {"_target_": "nanochat.evals.bpb.BitsPerByte", "every": 5, "tokens": 7}
    built = build_evaluations({"a": one, "b": None})
    assert list(built) == ["a"] and isinstance(built["a"], BitsPerByte) and built["a"].tokens == 7
    assert build_evaluations(None) == {}


@pytest.mark.slow
def test_an_added_evaluation_runs_while_training_and_by_command(tmp_path: Path) -> None:
    """One Python file and one YAML, in a copy of the code: nothing else is edited."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src/nanochat/evals/norms.py").write_text(CODE)
    (tmp_path / "conf/eval/norms.yaml").write_text(YAML)
    save_untrained(tmp_path / "base/runs/it/now/checkpoints/step_000001")
    ckpt = tmp_path / "base/runs/it/now"
    (tmp_path / "text.txt").write_text("Write river backwards. the quick brown fox. " * 200)
    env = {
        "PYTHONPATH": str(tmp_path / "src"),
        "NANOCHAT_BASE_DIR": str(tmp_path / "base"),
        "OMP_NUM_THREADS": "1",
    }

    def run(*words: str, code: int = 0) -> str:
        import os

        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command, env={**os.environ, **env}, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = run("nanochat.evaluate", f"ckpt={ckpt}", "evals=norms", "precision=fp32")
    words = [
        "+phase=base",
        f"init_from={ckpt}",
        "trainer=cpu",
        "data=local",
        "data.path=text.txt",
        "data.num_workers=0",
        "max_steps=1",
    ]
    words += [
        "batch_tokens=128",
        "sample.prompts=[]",
        "+eval@evals.norms=norms",
        "eval_at_start=true",
        "compute.compile=false",
    ]
    trained = run("nanochat.train", *words, "compute.precision=fp32")
    numbers = [f"{float(said.split(f'norm_{n}: ')[1].split()[0]):.4f}" for n in (0, 1)]
    assert f"norm_0 {numbers[0]}" in trained and f"norm_1 {numbers[1]}" in trained, (said, trained)
    assert "evals.norms.first=0 must be a whole number from 1 up" in run(
        "nanochat.train", *words, "evals.norms.first=0", code=2
    )


def _without_target() -> dict:
    return {key: value for key, value in SUMS.items() if key != "_target_"}
