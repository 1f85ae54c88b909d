"""A run as its folder records it, and the chain of runs it was started from. No weights are
read."""

import csv
import json
import math
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import RunCheckpoints, run_folders, started
from nanochat.evals.results import read_results
from nanochat.runs.listing import RunInfo, describe
from nanochat.runs.run_folder import CONFIG, RECORD, SAMPLES, SUMMARY, read_config

Curve = list[tuple[int, float]]  # (step, value), ascending
LONGEST_TAIL = 200_000  # guess: bytes of rollouts.jsonl, of which the last answers are shown


@dataclass(frozen=True)
class Chapter:
    """One run. `began` is the path of its parent checkpoint, which may belong to no run."""

    info: RunInfo
    config: dict[str, Any]
    record: dict[str, Any]
    summary: dict[
        str, Any
    ]  # written when the run stopped or ended; empty for runs of earlier versions
    curves: dict[str, Curve]
    began: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def checkpoints(self) -> RunCheckpoints:
        return RunCheckpoints(self.info.path / "checkpoints")

    @cached_property
    def step(self) -> int:
        """The last step with a number, which may be later than the last checkpoint."""
        steps = [curve[-1][0] for curve in self.curves.values()]
        return max([self.info.step, *steps])

    @cached_property
    def judged(self) -> Path | None:
        """The newest checkpoint with results."""
        found = map(self.checkpoints.path, reversed(self.checkpoints.steps()))
        return next((p for p in found if (p / "metrics.json").is_file() or read_results(p)), None)

    @cached_property
    def gpt_config(self) -> Any:
        """Sizes of the network, None before the first checkpoint."""
        steps = self.checkpoints.steps()
        try:
            return folder.read_config(self.checkpoints.path(steps[-1])) if steps else None
        except (ValueError, OSError):
            return None

    @property
    def seconds(self) -> float:
        """Seconds of training, without preparation, evaluation and saving."""
        steps = sum(value for _, value in self.curves.get("perf/step_seconds", []))
        return float(self.summary.get("seconds") or steps)

    @property
    def wall_seconds(self) -> float | None:
        """Seconds from start to end; None if the run was resumed, since pauses are not recorded."""
        if self.record.get("resumptions"):
            return None
        files = [self.info.path / "metrics.csv", *self.info.path.glob("checkpoints/*")]
        ends = [p.stat().st_mtime for p in files if p.exists()]
        return max(0.0, max(ends) - started(self.info.path)) if ends else None

    def samples(self) -> list[dict[str, Any]]:
        """Samples: the latest text of each prompt; in reinforcement learning
        some of the last answers."""
        latest = {line.get("prompt"): line for line in _lines(self.info.path / SAMPLES)}
        rollouts = list(_lines(self.info.path / "rollouts.jsonl", tail=LONGEST_TAIL))
        if rollouts:
            last = [r for r in rollouts if r.get("step") == rollouts[-1].get("step")]
            seen: dict[tuple[Any, Any], dict[str, Any]] = {}
            for r in last:  # one right and one wrong answer to each question
                seen.setdefault((r.get("question"), r.get("reward", 0) > 0), r)
            latest |= {
                (question, right): {**r, "text": r.get("completion")}
                for (question, right), r in list(seen.items())[:6]
            }
        return list(latest.values())


def read_chapter(path: Path, runs: Path) -> Chapter:
    """Read the folder of a run. Damaged or missing files are named in `notes`, and the rest
    is read all the same."""
    notes: list[str] = []

    def read(file: str) -> dict[str, Any]:
        try:
            found = json.loads((path / file).read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        except FileNotFoundError:
            return {}
        except ValueError:
            notes.append(f"{file} is damaged")
            return {}

    try:
        config = read_config(path)
    except (ValueError, OSError):
        config = {}
        notes.append(f"{CONFIG} is damaged")
    record = read(RECORD)
    began = (record.get("parent") or {}).get("path")
    return Chapter(describe(path, runs), config, record, read(SUMMARY), curves(path), began, notes)


def curves(path: Path) -> dict[str, Curve]:
    """metrics.csv by metric. Values that are not numbers are left out, and so is an
    incomplete last line."""
    found: dict[str, Curve] = {}
    try:
        with (path / "metrics.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not (row.get("step") or "").isdecimal() or None in row.values():
                    continue
                for key, text in row.items():
                    value = _number(text)
                    if key != "step" and value is not None:
                        found.setdefault(key, []).append((int(row["step"]), value))
    except (OSError, UnicodeDecodeError):
        return {}
    return found


def chain(path: Path, runs: Path) -> list[Chapter]:
    """The run and the runs before it, oldest first. The chain ends where the parent checkpoint
    belongs to no known run."""
    found: list[Chapter] = []
    place: Path | None = path
    while place is not None and place not in [c.info.path for c in found]:
        found.append(read_chapter(place, runs))
        place = run_of(found[-1].began, runs)
    return found[::-1]


def run_of(checkpoint: str | None, runs: Path) -> Path | None:
    """The run that a checkpoint belongs to, also if the base folder has been moved."""
    if checkpoint is None:
        return None
    run = Path(checkpoint).parent.parent
    moved = runs.joinpath(*run.parts[run.parts.index("runs") + 1 :]) if "runs" in run.parts else run
    return next((p for p in (run, moved) if (p / CONFIG).is_file()), None)


def find(words: str, runs: Path) -> Path:
    """The run that a user names: a folder, NAME/TIME, or NAME for its newest run.
    ValueError if there is none."""
    name = words.removesuffix("@latest").strip("/")
    for path in (Path(words).expanduser(), runs / name):
        if (path / CONFIG).is_file():
            return path.absolute()
        if path.name.startswith("step_") and (path.parent.parent / CONFIG).is_file():
            return path.parent.parent.absolute()
    folders = run_folders(runs, name) if "@" not in name and ".." not in name else []
    if not folders:
        raise ValueError(
            f"run={words} is not a run in {runs}; `python -m nanochat.runs` lists them. Give NAME, "
            "NAME/TIME or a folder"
        )
    return folders[-1]


def before(chapter: Chapter, runs: Path) -> Path | None:
    """The newest earlier run of the same name that has results."""
    name = chapter.info.name.split("/")[0]
    earlier = run_folders(runs, name) if (runs / name).is_dir() else []
    places = [p for p in earlier if p.resolve() != chapter.info.path.resolve()]
    mine = started(chapter.info.path)
    done = [p for p in places if started(p) < mine and any(p.glob("checkpoints/*/metrics.json"))]
    return done[-1] if done else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _lines(file: Path, tail: int | None = None) -> "deque[dict[str, Any]]":
    """The objects in the last `tail` bytes of a JSONL file; an incomplete line is skipped."""
    found: deque[dict[str, Any]] = deque()
    if not file.is_file():
        return found
    with file.open("rb") as handle:
        handle.seek(max(0, file.stat().st_size - tail) if tail else 0)
        for line in handle:
            try:
                one = json.loads(line)
            except ValueError:
                continue
            if isinstance(one, dict):
                found.append(one)
    return found
