"""The default paths on a machine that has neither fork, POSIX signals, `fcntl` nor /proc, and whose
files are those of Windows: training with loader workers, an evaluation, an answer."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.train.conftest import TINY, environment, losses, make_corpus, make_talks, the_run

from nanochat.runtime.locks import try_lock

pytestmark = pytest.mark.slow
# several commands in one interpreter, whose imports take most of the time
COMMANDS = """
import runpy, sys
for line in sys.stdin.read().splitlines():
    sys.argv[:] = line.split("\\t")
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""
STEPS = 4


def elsewhere(base: Path, *commands: list[str]) -> "subprocess.CompletedProcess[str]":
    """The commands under tests/runtime/elsewhere, with ASCII as the encoding of files without one,
    and an output that has no other letters than those of cp1252."""
    path = str(Path(__file__).parent / "elsewhere")
    given = {"PYTHONPATH": path, "PYTHONIOENCODING": "cp1252", "LC_ALL": "C"}
    given |= {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    return subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input="\n".join("\t".join(words) for words in commands),
        env=environment(base, **given),
        cwd=base,
        capture_output=True,
        encoding="cp1252",
        timeout=300,
    )


def test_a_run_an_evaluation_and_an_answer(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    talks = make_talks(tmp_path / "talks.jsonl")
    base = [word for word in TINY if "workers" not in word and "prompts" not in word]
    base += ["data=local", f"data.path={corpus}", "run_name=away", "save_every=2"]
    chat = [word for word in TINY if not word.startswith(("+phase", "model", "tokenizer", "data."))]
    chat += ["+phase=sft", "data=jsonl", f"data.path={talks}", "init_from=away@latest"]
    more = [f"max_steps={STEPS}", "data.num_workers=1", "data.prepare_workers=1"]
    done = elsewhere(
        tmp_path,
        ["nanochat.train", *base, *more, "checkpoints.keep_last=1"],
        ["nanochat.evaluate", "ckpt=away@latest", "evals=bpb,sample", "device=cpu"],
        ["nanochat.train", *chat, *more, "data.num_workers=0", "run_name=chat"],
        ["nanochat.cli", "ckpt=chat@latest", "prompt=the \u20ac", "max_tokens=4", "device=cpu"],
        ["nanochat.runs"],
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    run = the_run(tmp_path, "away")
    assert len(losses(run)) == STEPS and "val/bpb" in done.stdout
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == [f"step_{STEPS:06d}"]


def test_a_lock_is_exclusive_and_can_be_looked_at(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert try_lock(second, shared=True) is True
        assert try_lock(first) is False
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        assert try_lock(first) is True
        assert try_lock(second) is False and try_lock(second, shared=True) is False
