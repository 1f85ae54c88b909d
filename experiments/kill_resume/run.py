"""Kill a training run many times and compare it with one that was left alone: `python
experiments/kill_resume/run.py [kills] [kind]`.

`kind`: base (one process), ranks (base, two processes), sft, rl. Each time the process gets
SIGKILL, while it starts, while it trains and evaluates, or while it writes a checkpoint; then
`resume=auto` starts it again. All kinds but the first are killed only after their first checkpoint.
Of two processes and their parent each time another one is killed: the parent, a rank, or all three.
At the end every loss in metrics.csv and the weights must be the same to the last bit.
"""

import csv
import fcntl
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MOMENTS = ("starting", "training", "training", "writing a checkpoint")
START_SECONDS = 8.0  # measured: two cores, from the command to the first step
TINY = ["trainer=cpu", "sample.prompts=[]", "progress=none"]
TEXT = [
    "+phase=base",
    "model=d2",
    *TINY,
    "compute.compile=false",
    "data=pydocs",
    "model.sequence_len=64",
    "batch_tokens=2048",
    "data.rows_per_device=8",
    "data.num_workers=2",
    "tokenizer.vocab_size=1024",
    "eval_tokens=4096",
]
START = ["init_from=start@latest", "save_every=2", "eval_every=20"]
KINDS = {  # steps, words
    "base": (120, [*TEXT, "save_every=2", "eval_every=20"]),
    "ranks": (160, [*TEXT, "trainer.devices=2", "save_every=2", "eval_every=20"]),
    "sft": (
        160,
        [
            "+phase=sft",
            *TINY,
            "compute.compile=false",
            *START,
            "data=jsonl",
            "data.path={base}/talks.jsonl",
            "data.num_workers=2",
            "eval_tokens=4096",
        ],
    ),
    "rl": (
        50,
        [
            "+phase=rl",
            *TINY,
            *START,
            "task=simple_spelling",
            "task.path=library",
            "task.size=200",
            "rollout.questions=4",
            "rollout.samples=8",
            "rollout.max_tokens=16",
            "rollout.tools=false",
            "rewards.answer._target_=letter_reward.letters_e",
            "+rewards.answer._partial_=true",
            "~rewards.answer.grader",
            "evals.pass_at_k.limit=8",
            "evals.pass_at_k.samples=2",
            "preflight.questions=4",
            "force=true",
            "algo=dapo",
            "algo.minibatches=2",
            "algo.kl=0.01",
        ],
    ),
}


def start(base: Path, name: str, words: list[str], steps: int) -> subprocess.Popen:
    words = [word.format(base=base) for word in words]
    command = [
        sys.executable,
        "-m",
        "nanochat.train",
        *words,
        f"max_steps={steps}",
        f"run_name={name}",
        "resume=auto",
    ]
    paths = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    environment = {
        **os.environ,
        "NANOCHAT_BASE_DIR": str(base),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def write_talks(file: Path) -> None:
    with file.open("w") as out:
        for i in range(2000):
            turns = [
                ("user", f"what is {i % 43} and {i % 31}"),
                ("assistant", f"it is {i % 43 + i % 31}"),
            ]
            turns += (
                [("user", "and again"), ("assistant", f"still {i % 43 + i % 31}")]
                if i % 4 == 0
                else []
            )
            out.write(
                json.dumps([{"role": role, "content": content} for role, content in turns]) + "\n"
            )


def trained(runs: Path) -> int:
    """Rows in metrics.csv."""
    return sum(len(file.read_text().splitlines()) for file in runs.glob("*/metrics.csv"))


def wait_for(process: subprocess.Popen, event: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not event():
        time.sleep(0.0005)


def children(process: subprocess.Popen) -> list[int]:
    """The ranks: processes that were started by this one and train."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "nanochat.train" in line]


def kill(process: subprocess.Popen, which: str) -> None:
    ranks = children(process)
    if which == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif which == "rank" and ranks:
        os.kill(ranks[-1], signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def wait_until_free(run: Path) -> None:
    """Ranks whose parent was killed save and end; until then nobody else may open the folder."""
    with (run / ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)


def only(base: Path, name: str) -> Path:
    (run,) = [p.parent for p in (base / "runs" / name).glob("*/config.yaml")]
    return run


def losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    kind = sys.argv[2] if len(sys.argv) > 2 else "base"
    (steps, words), rng = KINDS[kind], random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_talks(base / "talks.jsonl")
        if kind in ("sft", "rl"):
            assert (
                start(base, "start", [*TEXT, "save_every=null", "eval_every=null"], 60).wait() == 0
            )
        assert start(base, "whole", words, steps).wait() == 0
        kills, writing, runs = 0, 0, base / "runs" / "killed"
        while kills < wanted:
            process = start(base, "killed", words, steps)
            moment = MOMENTS[kills % len(MOMENTS)]
            if kind != "base":
                wait_for(process, lambda: any(runs.glob("*/checkpoints/step_*")))
            if moment == "starting":
                time.sleep(
                    rng.uniform(0.2, 1.0) * START_SECONDS
                    if kind == "base" or kills
                    else rng.uniform(0.0, 1.0)
                )
            else:
                rows = trained(runs)
                wait_for(process, lambda rows=rows: trained(runs) > rows)
                if moment == "training":
                    time.sleep(rng.uniform(0.0, 1.0))
                else:
                    wait_for(process, lambda: any(runs.glob("*/checkpoints/.writing-step_*")))
            if process.poll() is not None:
                print("the run ended before it was killed often enough; raise its steps")
                break
            which = ("parent", "rank", "all")[kills % 3] if kind == "ranks" else "all"
            kill(process, which)
            half = any(runs.glob("*/checkpoints/.writing-step_*"))
            for run in runs.glob("*/.lock"):
                wait_until_free(run.parent)
            kills, writing = kills + 1, writing + half
            saved = sorted(p.name for p in runs.glob("*/checkpoints/step_*"))
            print(
                f"kill {kills:2}  {moment}"
                + (f" ({which} killed)" if kind == "ranks" else "")
                + (
                    f", {trained(runs)} steps logged, last whole checkpoint "
                    f"{saved[-1] if saved else 'none'}"
                )
                + (", one half written" if half else ""),
                flush=True,
            )
        assert start(base, "killed", words, steps).wait() == 0
        a = only(base, "whole")
        b = only(base, "killed")
        end = f"checkpoints/step_{steps:06d}/model.safetensors"
        begin = next((base / "runs" / "start").glob("*/checkpoints/step_*/model.safetensors"), None)
        print(f"{kind}: {kills} kills, {writing} of them with a checkpoint half written")
        print(f"losses equal to the last digit: {losses(a) == losses(b)} ({len(losses(b))} steps)")
        print(f"weights equal to the last bit: {filecmp.cmp(a / end, b / end, shallow=False)}")
        if begin:
            print(
                "weights are still those it began from: "
                f"{filecmp.cmp(a / end, begin, shallow=False)}"
            )


if __name__ == "__main__":
    main()
