"""How fast everything is on this machine, next to the original if it is there: `make bench`, or

    python experiments/bench/bench.py [peer=DIR] [peer_python=PYTHON] [depth=4] [parts=training,…] …

Both sides do a block of work in turn (A B A B), in processes that wait for each other; ratios are
medians over rounds, of wall time and of CPU time, which other programs on the machine disturb less.
Each part has a time limit, and one that fails does not stop the next. Prints a table, and writes
all numbers to JSON. Settings and what they mean: `Settings`.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nanochat.commands.configs import compose_choice
from nanochat.datamodules.pydocs import PyDocs
from nanochat.gpt import build_arch, counts, from_depth
from nanochat.runtime import hardware

HERE = Path(__file__).parent
PARTS = ("training", "optimizer", "decode", "loader", "tokenizer", "checkpoint")
Found = dict[str, Any]


@dataclass
class Settings:
    peer: str = ""  # a checkout of the original
    peer_python: str = ""  # default: DIR/.venv/bin/python, or the one that runs this
    depth: int = 4
    sequence_len: int = 512
    vocab_size: int = 8192
    rows: int = 16  # of a micro-batch
    accumulate: int = 1  # micro-batches of a step
    steps: int = 2  # of a block
    rounds: int = 3
    compile: int = 1
    text_mb: float = 3.0
    limit: int = 600  # seconds of a part
    json: str = "bench.json"
    parts: str = ",".join(PARTS)
    more: str = ""  # words for nanochat.train, separated by spaces


def settings_of(words: list[str]) -> Settings:
    known = {field.name: field.type for field in fields(Settings)}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if wrong := [w for w in words if "=" not in w] + [k for k in given if k not in known]:
        sys.exit(f"error: {wrong[0]} is not a setting; choose from {', '.join(known)}")
    found = Settings(**{k: known[k](v) for k, v in given.items()})
    if wrong := [part for part in found.parts.split(",") if part not in PARTS]:
        sys.exit(f"error: parts={wrong[0]} is not known; choose from {', '.join(PARTS)}")
    if found.peer and not (Path(found.peer) / "nanochat" / "gpt.py").is_file():
        sys.exit(
            f"error: peer={found.peer} has no nanochat/gpt.py; give a checkout of the original"
        )
    return found


def write_text(folder: Path, megabytes: float) -> None:
    """The library's documentation as the original's shards: a column `text`, the last for
    validation."""
    folder.mkdir(parents=True)
    texts, size = [], 0
    for text in PyDocs(document_chars=2000).documents("train"):
        texts.append(text)
        size += len(text)
        if size > megabytes * 1e6:
            break
    for number, part in enumerate((texts[50:], texts[:50])):
        file = folder / f"shard_{number:05d}.parquet"
        pq.write_table(pa.table({"text": part}), file, row_group_size=1000)


class Side:
    """A program that does a block of work for each line it is given."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log, pipe = log, subprocess.PIPE
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True
            )

    def answer(self) -> Found:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"measures"'):
                return json.loads(line)
        lines = self.log.read_text().strip().splitlines() or ["it ended"]
        last = "its time was over" if self.process.wait() == -signal.SIGKILL else lines[-1]
        raise RuntimeError(f"{last} (all that it said: {self.log})")

    def block(self) -> Found:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


def in_turn(sides: dict[str, Side], rounds: int, limit: int) -> dict[str, list[Found]]:
    """Blocks of each side; the order is turned round by round."""
    clock = threading.Timer(limit, lambda: [side.process.kill() for side in sides.values()])
    clock.start()
    found: dict[str, list[Found]] = {name: [] for name in sides}
    try:
        for side in sides.values():
            side.answer()  # ready
        for number in range(rounds):
            names = list(sides) if number % 2 == 0 else list(reversed(sides))
            for name in names:
                found[name].append(sides[name].block())
    finally:
        clock.cancel()
        for side in sides.values():
            side.process.kill()
            side.process.wait()
    return found


def training_command(s: Settings, base: Path, device: str, dtype: str) -> list[str]:
    tokens = s.rows * s.sequence_len * s.accumulate
    text = sorted((base / "base_data_climbmix").glob("*.parquet"))
    words = {
        "model": f"d{s.depth}",
        "trainer": "1xgpu" if device == "cuda" else "cpu",
        "data": "local",
        "data.path": text[0],
        "data.val_path": text[1],
        "data.rows_per_device": s.rows,
        "data.num_workers": 2 if device == "cuda" else 0,  # in the CPU time that is counted
        "model.sequence_len": s.sequence_len,
        "tokenizer.vocab_size": s.vocab_size,
        "arch.window_pattern": "L",  # the original's SDPA has no windows
        "batch_tokens": tokens,
        "max_steps": 10**6,
        "compute.compile": str(bool(s.compile)).lower(),
        "compute.precision": "bf16" if dtype == "bfloat16" else "fp32",
        "save_every": "null",
        "eval_every": "null",
        "sample_every": "null",
        "progress": "none",
        "+callbacks.turns._target_": "callback.Turns",
        "+callbacks.turns.steps": s.steps,
        "+callbacks.turns.batch_tokens": tokens,
    }
    typed = [f"{key}={value}" for key, value in words.items()]
    return [sys.executable, "-m", "nanochat.train", "+phase=base", *typed, *s.more.split()]


def measure(part: str, s: Settings, base: Path, device: str, dtype: str) -> dict[str, list[Found]]:
    shared = {
        **asdict(s),
        "device": device,
        "dtype": dtype,
        "base": str(base),
        "text": str(base / "base_data_climbmix"),
    }
    if part == "decode":
        return decoding(s, device)
    words = [part, json.dumps(shared)]
    own = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": f"{HERE}"}
    command = (
        training_command(s, base, device, dtype)
        if part == "training"
        else [sys.executable, str(HERE / "ours.py"), *words]
    )
    sides = {"ours": Side(command, own, base / f"{part}-ours.log")}
    if s.peer:
        there = {**own, "PYTHONPATH": f"{s.peer}:{HERE}"}
        command = [python_of(s), str(HERE / "theirs.py"), *words]
        sides["original"] = Side(command, there, base / f"{part}-original.log")
    return in_turn(sides, s.rounds, s.limit)


def python_of(s: Settings) -> str:
    own = Path(s.peer) / ".venv" / "bin" / "python"
    return s.peer_python or (str(own) if own.is_file() else sys.executable)


def decoding(s: Settings, device: str) -> dict[str, list[Found]]:
    """By the two scripts of experiments/decode_speed, whole processes in turn."""
    scripts = HERE.parent / "decode_speed"
    words = [str(n) for n in (s.depth, s.vocab_size, 128, 64, torch.get_num_threads())]
    sides = {"ours": ([sys.executable, scripts / "ours.py"], {})}
    if s.peer:
        sides["original"] = ([python_of(s), scripts / "original.py"], {"PYTHONPATH": s.peer})
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for number in range(s.rounds):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            command, more = sides[name]
            environment = {**os.environ, "NANOCHAT_DTYPE": "float32", "DEVICE": device, **more}
            done = subprocess.run(
                [*map(str, command), *words],
                env=environment,
                capture_output=True,
                text=True,
                timeout=s.limit,
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            rows = [json.loads(x) for x in done.stdout.splitlines() if x.startswith("{")]
            found[name].append(
                {
                    "measures": {
                        f"decoding: {row['what']}, tokens/s": (row["tokens_per_second"], 1, None)
                        for row in rows
                        if "warm-up" not in row["what"]
                    }
                }
            )
    return found


def compared(found: dict[str, list[Found]]) -> dict[str, Found]:
    """By what was measured: rates, medians over rounds, and ratios round by round."""
    result: dict[str, Found] = {}
    for what in found["ours"][0]["measures"]:
        row: Found = {}
        for name, blocks in found.items():
            rates = [b["measures"][what][0] / b["measures"][what][1] for b in blocks]
            row[name] = statistics.median(rates)
        if "original" in found:
            pairs = [
                (a["measures"][what], b["measures"][what])
                for a, b in zip(found["ours"], found["original"], strict=True)
            ]
            row["ratio"] = statistics.median(a[0] / a[1] * b[1] / b[0] for a, b in pairs)
            if pairs[0][0][2]:
                ratios = [a[0] / a[2] * b[2] / b[0] for a, b in pairs]
                row["ratio of CPU time"] = statistics.median(ratios)
                row["range of it"] = [min(ratios), max(ratios)]
        result[what] = row
    if peaks := {n: max(b.get("peak_gib", 0) for b in blocks) for n, blocks in found.items()}:
        first = next(iter(result))
        if peaks["ours"] and first.startswith("training"):
            more = {"ratio": peaks["ours"] / peaks["original"]} if "original" in peaks else {}
            result["training: peak memory, GiB"] = {**peaks, **more}
    return result


def with_mfu(rows: dict[str, Found], s: Settings, peak: float | None) -> None:
    arch = build_arch({**compose_choice("arch", "modern"), "window_pattern": "L"})
    sizes = from_depth(s.depth, vocab_size=s.vocab_size, sequence_len=s.sequence_len, arch=arch)
    if peak and (row := rows.get("training, tokens/s")):
        share = 100 * counts.flops_per_token(sizes) / peak
        shares = {name: row[name] * share for name in ("ours", "original") if name in row}
        rows["training: MFU, %"] = shares


def with_forecast(rows: dict[str, Found], base: Path) -> None:
    """The run's own prediction of its memory, where there is one."""
    for file in base.glob("runs/*/*/record.json"):
        forecast = json.loads(file.read_text()).get("forecast")
        if forecast and (peak := forecast["peak_bytes"]):
            measured = rows["training: peak memory, GiB"]["ours"]
            row = {"ours": measured, "original": peak / 2**30, "ratio": measured / peak * 2**30}
            rows["training: peak memory and its forecast, GiB"] = row


def line(what: str, row: Found) -> str:
    def shown(name: str, unit: str = "") -> str:
        value = row.get(name)
        return "" if value is None else f"{value:,.4g}{unit}" if value < 1000 else f"{value:,.0f}"

    low, high = row.get("range of it", (None, None))
    spread = "" if low is None else f" ({low:.2f}-{high:.2f})"
    ratios = [shown("ratio", " x"), shown("ratio of CPU time", " x") + spread]
    return f"| {what} | {shown('ours')} | {shown('original')} | {' | '.join(ratios)} |"


def main() -> None:
    s = settings_of(sys.argv[1:])
    device = hardware.pick_device("auto")
    dtype = str(hardware.compute_dtype("auto", device)[0]).removeprefix("torch.")
    machine = hardware.detect(device, getattr(torch, dtype))
    base = Path(tempfile.mkdtemp(prefix="nanochat-bench-"))
    write_text(base / "base_data_climbmix", s.text_mb)
    print(f"{machine.name}, {dtype}; d{s.depth}, {s.rows} rows x {s.sequence_len} tokens")
    print("| what | ours | original | ratio | ratio of CPU time |\n|---|---|---|---|---|")
    results, failed = {}, {}
    for part in s.parts.split(","):
        try:
            rows = compared(measure(part, s, base, device.type, dtype))
            if part == "training":
                with_mfu(rows, s, machine.peak_flops)
                with_forecast(rows, base)
        except (RuntimeError, subprocess.TimeoutExpired, BrokenPipeError) as error:
            failed[part] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"| {part} | failed: {failed[part]} | | | |", flush=True)
            continue
        results |= rows
        for what, row in rows.items():
            print(line(what, row), flush=True)
    facts = {"machine": machine.name, "dtype": dtype, "settings": asdict(s)}
    Path(s.json).write_text(
        json.dumps({**facts, "results": results, "failed": failed}, indent=2) + "\n"
    )
    print(f"all numbers: {s.json}")
    if not failed:
        shutil.rmtree(base, ignore_errors=True)
    sys.exit(1 if failed and not results else 0)


if __name__ == "__main__":
    main()
