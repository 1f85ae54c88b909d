"""Kill a training run many times and compare it with one that was left alone: `python experiments/kill_resume/run.py [kills]`.

Each time the process gets SIGKILL at a random moment of its life, start-up, training, evaluation and checkpoint writing included; then
`resume=auto` starts it again. At the end every loss in metrics.csv and the weights must be the same to the last bit.
"""

import csv
import filecmp
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 120
WORDS = [
    "+phase=base", "model=d2", "trainer=cpu", "data=pydocs", "model.sequence_len=64", "batch_tokens=2048", "data.rows_per_device=8",
    "data.num_workers=2", "tokenizer.vocab_size=1024", "trainer.compile=false", f"max_steps={STEPS}", "save_every=2", "eval_every=20",
    "eval_tokens=4096", "sample.prompts=[]", "progress=none",
]  # fmt: skip


def start(base: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "nanochat.train", *WORDS, f"run_name={name}", "resume=auto"]
    return subprocess.Popen(
        command, env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )


def only(base: Path, name: str) -> Path:
    (run,) = [p.parent for p in (base / "runs" / name).glob("*/config.yaml")]
    return run


def losses(run: Path) -> dict[str, str]:
    with (run / "metrics.csv").open(newline="") as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def main() -> None:
    wanted, rng = int(sys.argv[1]) if len(sys.argv) > 1 else 20, random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        begun = time.monotonic()
        assert start(base, "whole").wait() == 0
        life = time.monotonic() - begun
        kills = writing = 0
        while kills < wanted:
            process = start(base, "killed")
            if kills % 4 == 3:  # every fourth inside the writing of a checkpoint
                place, deadline = base / "runs" / "killed", time.monotonic() + 60
                while (
                    time.monotonic() < deadline
                    and process.poll() is None
                    and not list(place.glob("*/checkpoints/.writing-step_*"))
                ):
                    time.sleep(0.0005)
                inside = bool(list(place.glob("*/checkpoints/.writing-step_*")))
            else:
                time.sleep(rng.uniform(0.2, 1.0) * min(life, 12.0))
                inside = False
            if process.poll() is not None:
                print("the run ended before it was killed often enough; raise STEPS")
                break
            process.kill()
            process.wait()
            kills, writing = kills + 1, writing + inside
            steps = sorted(p.name for p in (base / "runs" / "killed").glob("*/checkpoints/step_*"))
            print(
                f"kill {kills:2}  {'while writing a checkpoint' if inside else 'at a random moment'}, last whole: {steps[-1] if steps else 'none'}",
                flush=True,
            )
        assert start(base, "killed").wait() == 0
        a, b, end = only(base, "whole"), only(base, "killed"), f"checkpoints/step_{STEPS:06d}/model.safetensors"
        print(f"{kills} kills, {writing} of them with a checkpoint half written")
        print(f"losses equal to the last digit: {losses(a) == losses(b)} ({len(losses(b))} steps)")
        print(f"weights equal to the last bit: {filecmp.cmp(a / end, b / end, shallow=False)}")


if __name__ == "__main__":
    main()
