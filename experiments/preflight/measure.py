"""The predicted peak of memory and the measured one: `python experiments/preflight/measure.py`.

Each line is a real run of three steps in a process of its own, evaluation and saving included, on
the text of a file. Measured is the resident memory at its peak, above that before the network was
built. Any words after the command are added to every run.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from nanochat.runtime.paths import base_dir

COMMON = (
    "+phase=base trainer=cpu data=local data.path=docs/nanochat-facts.md data.documents=paragraph "
    "data.num_workers=0 batch_tokens=16384 max_steps=3 "
    "eval_every=null eval_tokens=16384 save_every=null sample.prompts=[] progress=none "
    "compute.compile=false compute.precision=fp32"
)
RUNS = (
    "model=d4 arch=modern data.rows_per_device=16 compute.checkpointing=auto",
    "model=d4 arch=modern data.rows_per_device=16 compute.checkpointing=attention",
    "model=d4 arch=modern data.rows_per_device=32 compute.checkpointing=block",
    "model=d4 arch=classic data.rows_per_device=16 compute.checkpointing=auto",
    "model=d4 arch=classic data.rows_per_device=16 compute.checkpointing=block",
    "model=d6 arch=modern data.rows_per_device=8 compute.checkpointing=auto",
    "model=d6 arch=classic data.rows_per_device=8 compute.checkpointing=attention",
    "model=d8 arch=modern data.rows_per_device=8 compute.checkpointing=attention",
    "model=d8 arch=modern data.rows_per_device=8 compute.checkpointing=auto",
    "model=d4 arch=modern data.rows_per_device=8 compute.checkpointing=auto trainer.devices=2",
    "model=d6 arch=modern data.rows_per_device=8 compute.checkpointing=block trainer.devices=2",
)

print("| run | predicted MB | measured MB | error |\n|---|---|---|---|")
for number, words in enumerate(RUNS):
    name = f"preflight-{os.getpid()}-{number}"
    command = [sys.executable, "-m", "nanochat.train", *COMMON.split(), *words.split()]
    done = subprocess.run(
        [*command, f"run_name={name}", *sys.argv[1:]], capture_output=True, text=True
    )
    records: list[Path] = sorted((base_dir() / "runs" / name).glob("*/record.json"))
    if done.returncode or not records:
        print(f"| {words} | failed: {done.stderr.strip().splitlines()[-1:]} | | |", flush=True)
        continue
    record = json.loads(records[-1].read_text())
    predicted, measured = (record[key]["peak_bytes"] for key in ("forecast", "outcome"))
    print(
        f"| {words.replace('compute.', '').replace('data.', '')} | {predicted / 1e6:.0f} | "
        f"{measured / 1e6:.0f} | {100 * (predicted / measured - 1):+.1f} % |",
        flush=True,
    )
