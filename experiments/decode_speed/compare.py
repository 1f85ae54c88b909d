"""Ours and another's decoding in turn: `python compare.py DEPTH VOCAB PROMPT DECODE THREADS ROUNDS
OTHER_PYTHON OTHER_SOURCE`.

Ours plain and compiled, in fp32 and, on a CPU that multiplies it, in bf16; the other in fp32, which
is what it takes on any CPU by itself. Prints the median of each measure and the median of the
ratios round by round, with their range.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from nanochat.runtime.hardware import multiplies_bf16

HERE = Path(__file__).parent
sizes, rounds, python, source = sys.argv[1:6], int(sys.argv[6]), sys.argv[7], sys.argv[8]


def run(command: list[str], **environment: str) -> dict[str, float]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": sizes[4],
        "NANOCHAT_DTYPE": "float32",
        **environment,
    }
    done = subprocess.run(
        [*command, *sizes], env=environment, capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row["what"]: row["tokens_per_second"] for row in rows}


OURS = {"ours": {}, "ours, compiled": {"COMPILE": "1"}}
if multiplies_bf16(torch.device("cpu"))[0]:
    OURS |= {f"{name}, bf16": {**settings, "BF16": "1"} for name, settings in OURS.items()}
runs: dict[str, list[dict[str, float]]] = {name: [] for name in [*OURS, "original"]}
for _ in range(rounds):
    for name, settings in OURS.items():
        runs[name].append(run([sys.executable, str(HERE / "ours.py")], **settings))
    runs["original"].append(run([python, str(HERE / "original.py")], PYTHONPATH=source))
for name, rows in list(runs.items())[:-1]:
    for what in rows[0]:
        mine = statistics.median(row[what] for row in rows)
        if what not in runs["original"][0]:
            print(f"{name}, {what}: {mine:.3f}")
            continue
        theirs = statistics.median(row[what] for row in runs["original"])
        ratios = [a[what] / b[what] for a, b in zip(rows, runs["original"], strict=True)]
        print(
            f"{name}, {what}: {mine:,.0f} against {theirs:,.0f} tokens/s, "
            f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"
        )
