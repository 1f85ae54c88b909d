"""Run wrong command lines one by one and print what each says: `python
experiments/wrong_inputs/table.py`."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

CPU = "+phase=base trainer=cpu model=d2"
WRONG = [
    ("train", "trainer=cpu"),
    ("train", "+phase=bse trainer=cpu"),
    ("train", "+phase=base trainer=cpuu"),
    ("train", f"{CPU} modl.depth=3"),
    ("train", f"{CPU} optim.groups.matrix.lrr=3"),
    ("train", f"{CPU} +max_step=5"),
    ("train", f"{CPU} max_steps=many"),
    ("train", f"{CPU} compute.compile=off"),
    ("train", f"{CPU} trainer.num_nodes=2"),
    ("train", f"{CPU} data=local"),
    ("train", f"{CPU} data=local data.path=no/such/folder"),
    ("train", f"{CPU} data=local data.path=rows.jsonl"),
    ("train", f"{CPU} data=local data.path=torn.parquet"),
    ("train", f"{CPU} data=local data.path=empty"),
    ("train", f"{CPU} data=local data.path=letter.docx"),
    ("train", f"{CPU} data=local data.path=nothing.txt tokenizer.vocab_size=300"),
    ("train", f"{CPU} tokenizer.vocab_size=100"),
    ("train", f"{CPU} max_steps=0"),
    ("train", f"{CPU} dry_run=true max_steps=5 plan.tokens=1000000"),
    ("train", f"{CPU} dry_run=true data.rows_per_device=7 batch_tokens=8192"),
    ("train", f"{CPU} dry_run=true model.n_embd=100 model.n_head=4"),
    ("train", f"{CPU} dry_run=true plan.ratio=0.000001"),
    ("train", "+phase=base model=d2 trainer=1xgpu data=pydocs tokenizer.vocab_size=300"),
    ("train", f"{CPU} init_from=no/such/checkpoint"),
    ("train", f"{CPU} resume=no/such/run tokenizer.vocab_size=300"),
    ("train", f"{CPU} compute.attention=flex tokenizer.vocab_size=300 max_steps=1"),
    ("sample", "ckpt=nobody@latest"),
    ("sample", "ckpt=. temperature=-1"),
    ("evaluate", "ckpt=. evals=hellaswag"),
]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "rows.jsonl").write_text(json.dumps({"body": "words"}) + "\n")
        (place / "torn.parquet").write_bytes(b"PAR1 this is not parquet")
        (place / "letter.docx").write_text("words")
        (place / "empty").mkdir()
        (place / "nothing.txt").write_text("")
        print("| typed | said |\n|---|---|")
        for command, words in WRONG:
            done = subprocess.run(
                [sys.executable, "-m", f"nanochat.{command}", *shlex.split(words)],
                cwd=place,
                env={**os.environ, "NANOCHAT_BASE_DIR": str(place / "base")},
                capture_output=True,
                text=True,
            )
            said = (
                " / ".join(done.stderr.strip().splitlines()).replace(name, "…").replace("|", "\\|")
            )
            print(f"| `{command} {words}` | {said} (exit {done.returncode}) |", flush=True)


if __name__ == "__main__":
    main()
