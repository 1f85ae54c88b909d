"""The checkpoints of a run, and finding a checkpoint by what a user types: a folder, or
RUN@latest|best|step."""

import contextlib
import difflib
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanochat.checkpoint import atomic, certificate, exported, folder, imported
from nanochat.checkpoint.writer import Writer

FOLDER_TIME = "%Y-%m-%d_%H-%M-%S"  # name of a run's folder, in UTC, followed by Z
BEST = "best.json"
START = "start.json"  # results of an evaluation before the first step
NAMED = 8  # guess: runs that an error lists
# in a checkpoint: the runs that started from it, and need it to be resumed
BEGAN_HERE = "began-here.txt"


class RunCheckpoints:
    """`checkpoints/step_000500/` … of one run, with a pointer to the best and pruning of the
    others."""

    def __init__(
        self,
        root: Path,
        keep_last: int | None = 2,
        best_metric: str | None = "val/bpb",
        asynchronous: bool = False,
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise ValueError(
                f"checkpoints.keep_last={keep_last} must be at least 1, or null to keep all"
            )
        self.root, self.keep_last, self.best_metric = root, keep_last, best_metric
        self.writer = Writer() if asynchronous else None  # writes them while training goes on

    def finish(self) -> None:
        """Wait for one that is being written. What has failed in it is raised."""
        if self.writer is not None:
            self.writer.finish()

    @property
    def failed(self) -> bool:
        """Whether the writing of one has failed; `finish` raises it."""
        return self.writer is not None and self.writer.failed

    def path(self, step: int) -> Path:
        return self.root / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps with a folder, ascending."""
        found = (
            [re.fullmatch(r"step_(\d+)", p.name) for p in self.root.glob("step_*")]
            if self.root.is_dir()
            else []
        )
        return sorted(int(m.group(1)) for m in found if m)

    def latest_sound(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that can be resumed from, and a line for each newer one that
        cannot."""
        problems: list[str] = []
        for step in reversed(self.steps()):
            wrong = folder.problem(self.path(step), state=True)
            if wrong is None:
                return self.path(step), problems
            problems.append(wrong)
        return None, problems

    def best(self) -> tuple[int, float] | None:
        try:
            data = json.loads((self.root / BEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return int(data["step"]), float(data["value"])

    def metrics(self, step: int) -> dict[str, Any]:
        """Evaluation results of the checkpoint at `step`; step 0 is the state before training,
        which has no checkpoint."""
        file = self.path(step) / "metrics.json" if step else self.root / START
        return folder.read_json(file) if file.is_file() else {}

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        """Store evaluation results of the checkpoint at `step`, and move the pointer to the best if
        it is better (lower)."""
        self.finish()
        if step == 0:
            self.root.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self.root / START, metrics)
        if not self.path(step).is_dir():
            return
        atomic.write_json(self.path(step) / "metrics.json", {**self.metrics(step), **metrics})
        value = metrics.get(self.best_metric) if self.best_metric else None
        best = self.best()
        if value is not None and (
            best is None or value < best[1] or not self.path(best[0]).is_dir()
        ):
            atomic.write_json(
                self.root / BEST, {"step": step, "metric": self.best_metric, "value": value}
            )

    def prune(self) -> None:
        """Delete checkpoints that are not among the newest `keep_last`, not the best, and not the
        start of another run; and what a killed writer left behind."""
        self.finish()
        for leftover in self.root.glob(f"{atomic.TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink(
                missing_ok=True
            )
        if self.keep_last is None:
            return
        best = self.best()
        for step in self.steps()[: -self.keep_last]:
            doomed = self.path(step)
            if (best is None or step != best[0]) and not (doomed / BEGAN_HERE).exists():
                gone = doomed.with_name(f"{atomic.TEMPORARY}{doomed.name}-gone")
                # renamed first, so that a kill while deleting leaves no incomplete checkpoint under
                # this name
                doomed.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)


def now() -> datetime:
    """The current time in UTC: the start times of runs must sort the same in every time zone."""
    return datetime.now(UTC)


def started(run: Path) -> float:
    """Start time of a run in seconds since 1970, from its record; else from the name of its folder,
    else from the folder's date.

    Older versions wrote local time, in record and name.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return datetime.fromisoformat(
            json.loads((run / "record.json").read_text(encoding="utf-8"))["started"]
        ).timestamp()
    with contextlib.suppress(ValueError):
        # followed by Z for UTC, and a number if several runs began in one second
        stamp = run.name[:19]
        zone = UTC if run.name[19:20] == "Z" else None
        return datetime.strptime(stamp, FOLDER_TIME).replace(tzinfo=zone).timestamp()
    return run.stat().st_mtime


def run_folders(runs: Path, name: str) -> list[Path]:
    """Folders of the runs called `name`, oldest first, including the trials of its sweeps."""
    found = {p.parent for p in (runs / name).glob("*/record.json")} | {
        p.parent for p in (runs / name).glob("*/*/record.json")
    }
    return sorted(found, key=lambda p: (started(p), str(p.relative_to(runs))))


def resolve(text: str | Path, runs: Path, *, force: bool = False) -> Path:
    """The checkpoint folder that `text` names: a checkpoint folder, a run folder with one
    checkpoint, or RUN@latest, RUN@best, RUN@STEP.

    RUN is a run name, or name/time of one run. A checkpoint of the original (`imported.find`), a
    GPT-2 of the hub (hf:ID-or-folder) and an export for transformers, also one of the hub, are
    converted first; an export with a red certificate is a ValueError unless `force`. Two candidates
    are a ValueError that lists them.
    """
    words = str(text)
    of_hub = words.startswith(imported.huggingface.PREFIX)
    path = imported.hub_place(words) if of_hub else Path(words).expanduser()
    if exported.is_exported(path):
        certificate.require_not_red(path, force=force)
        return exported.cached(path)
    if of_hub:
        return imported.gpt2_cached(words)
    if (
        "@" not in words
        and not (path / "config.json").is_file()
        and (found := imported.find(words))
    ):
        for place in (found.folder, *found.folder.parents[:2]):
            certificate.require_not_red(place, force=force)
        return imported.cached(found)
    if path.is_dir():
        if (path / "checkpoints").is_dir():
            return _only(RunCheckpoints(path / "checkpoints"), words)
        return folder.require(path)
    if path.exists():
        raise ValueError(
            f"{path} is a file; a checkpoint is a folder with model.safetensors and config.json, "
            "or the original's model_STEP.pt"
        )
    name, at, which = words.rpartition("@")
    if not at:
        raise ValueError(
            f"{words} is neither a folder nor RUN@latest, RUN@best or RUN@STEP{_meant(words, runs)}"
        )
    candidates = (
        [runs / name] if (runs / name / "record.json").is_file() else run_folders(runs, name)
    )
    candidates = [c for c in candidates if RunCheckpoints(c / "checkpoints").steps()]
    if not candidates:
        raise ValueError(f"no run called {name} with a checkpoint in {runs}{_meant(name, runs)}")
    if which == "latest":
        return _pick(RunCheckpoints(candidates[-1] / "checkpoints"), "latest", words)
    if len(candidates) > 1:
        listed = ", ".join(f"{c.relative_to(runs)}@{which}" for c in candidates)
        raise ValueError(f"{words} means {len(candidates)} runs; choose one of: {listed}")
    return _pick(RunCheckpoints(candidates[0] / "checkpoints"), which, words)


def keep_for(checkpoint: Path, run: Path) -> None:
    """Record in a checkpoint that `run` starts from it, so that it is not pruned. If the folder is
    read-only it cannot be pruned either."""
    with (
        contextlib.suppress(OSError),
        (checkpoint / BEGAN_HERE).open("a", encoding="utf-8") as file,
    ):
        file.write(f"{run}\n")


def lasting_name(checkpoint: Path, runs: Path) -> str:
    """A name that `resolve` maps to this checkpoint also after further training: RUN/TIME@STEP
    below `runs`, else its path."""
    run, number = checkpoint.parent.parent, re.fullmatch(r"step_(\d+)", checkpoint.name)
    if (
        number
        and checkpoint.parent.name == "checkpoints"
        and run.is_relative_to(runs)
        and (run / "record.json").is_file()
    ):
        return f"{run.relative_to(runs)}@{int(number[1])}"
    return str(checkpoint.absolute())


def short_name(checkpoint: Path) -> str:
    """RUN@STEP for a checkpoint in a run's folder, else the name of its own folder."""
    path = checkpoint.resolve()
    step = re.fullmatch(r"step_(\d+)", path.name)
    in_run = step is not None and path.parent.name == "checkpoints"
    return f"{path.parents[2].name}@{int(step[1])}" if in_run and step else path.name


def described(checkpoint: Path) -> str:
    """What a name was resolved to, as a line: path, phase, step, architecture and the checkpoints
    it goes back to."""
    config = folder.read_config(checkpoint)
    file = checkpoint / "lineage.json"
    lineage = folder.read_lineage(checkpoint) if file.is_file() else {}
    parents: list[str] = []
    seen = lineage
    while (parent := (seen.get("parent") or {}).get("path")) and len(parents) < NAMED:
        parents.append(short_name(Path(parent)))
        there = (Path(parent) / "lineage.json").is_file()
        seen = folder.read_lineage(Path(parent)) if there else {}
    if source := (seen.get("imported") or {}).get("from"):
        parents.append(source)
    phase, step = folder.phase(checkpoint) or "unknown", lineage.get("step")
    return (
        f"checkpoint: {checkpoint}, phase {phase}, step "
        f"{'unknown' if step is None else format(step, ',')}, arch {config.arch.name}, "
        f"{config.n_layer} layers, from {' <- '.join(parents) or 'nothing before it'}"
    )


def _meant(name: str, runs: Path) -> str:
    """A suggestion for a mistyped `name`, for the end of an error: the most similar run, or the
    newest ones."""
    folders = (
        sorted((p for p in runs.iterdir() if p.is_dir()), key=lambda p: -p.stat().st_mtime)
        if runs.is_dir()
        else []
    )
    names = [f"{p.name}@latest" for p in folders]
    if near := difflib.get_close_matches(f"{name}@latest", names, n=1, cutoff=0.8):
        return f"; did you mean {near[0]}?"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"; runs here: {', '.join(names[:NAMED])}{more}"
        if names
        else "; there are no runs here yet"
    )


def _only(checkpoints: RunCheckpoints, words: str) -> Path:
    """The checkpoint of a run that was given without a step. ValueError if there are several."""
    if len(steps := checkpoints.steps()) > 1:
        listed = ", ".join(f"{words}@{step}" for step in ("latest", "best", *steps))
        raise ValueError(f"{words} holds {len(steps)} checkpoints; choose one of: {listed}")
    return _pick(checkpoints, "latest", words)


def _pick(checkpoints: RunCheckpoints, which: str, words: str) -> Path:
    steps = checkpoints.steps()
    if not steps:
        raise ValueError(f"{checkpoints.root} holds no checkpoint")
    if which == "latest":
        return folder.require(checkpoints.path(steps[-1]))
    if which == "best":
        best = checkpoints.best()
        if best is None:
            raise ValueError(
                f"{words}: no checkpoint of this run was evaluated, so there is no best one; use "
                "@latest"
            )
        return folder.require(checkpoints.path(best[0]))
    if which.isdecimal() and int(which) in steps:
        return folder.require(checkpoints.path(int(which)))
    raise ValueError(
        f"{words}: {which} is not latest, best or one of the steps {', '.join(map(str, steps))}"
    )
