"""All runs of the base folder: what each is, how far it came, what it takes on disk; deleting and
archiving them."""

import hashlib
import json
import os
import shutil
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.checkpoint import folder
from nanochat.checkpoint.runs import BEGAN_HERE, RunCheckpoints, lasting_name, started
from nanochat.runs.run_folder import RECORD, read_config
from nanochat.runtime.locks import try_lock

GOING = ".going"  # ending of a run folder that is being deleted


@dataclass(frozen=True)
class RunInfo:
    """One run. `size` is in bytes, `age` in seconds since it began, `best` the metric it is judged
    by (lower is better)."""

    path: Path
    name: str  # NAME/TIME below the base folder's runs
    phase: str
    state: str  # training, finished, stopped, or what is wrong with it
    step: int
    steps: int | None  # as planned
    metric: str
    best: float | None
    size: int
    age: float
    parent: str | None
    children: tuple[str, ...]  # runs that began from its checkpoints, and are still there


def list_runs(runs: Path, name: str | None = None) -> list[RunInfo]:
    """Every run below `runs` (its name, or that of its sweep, is `name`), the one that began last
    first."""
    found = {p.parent for pattern in ("*/*", "*/*/*") for p in runs.glob(f"{pattern}/config.yaml")}
    kept = [p for p in found if name is None or p.relative_to(runs).parts[0] == name]
    return [
        describe(p, runs) for p in sorted(kept, key=lambda p: (started(p), str(p)), reverse=True)
    ]


def describe(path: Path, runs: Path) -> RunInfo:
    """What a run folder holds. Damaged files are named in `state`; the rest is shown all the
    same."""
    config: dict[str, Any] = {}
    record: dict[str, Any] = {}
    wrong: str | None = None
    try:
        config = read_config(path)
        record = (
            json.loads((path / RECORD).read_text(encoding="utf-8"))
            if (path / RECORD).is_file()
            else {}
        )
    except ValueError:
        wrong = "damaged: config.yaml" if not config else f"damaged: {RECORD}"
    checkpoints = RunCheckpoints(path / "checkpoints")
    reached = checkpoints.steps()
    step, steps = (reached or [0])[-1], (record.get("plan") or {}).get("steps")
    metric = (config.get("checkpoints") or {}).get("best_metric", "val/bpb")
    best = checkpoints.best()
    if wrong is None and reached:
        wrong = "damaged: last checkpoint" if folder.problem(checkpoints.path(step)) else None
    finished = steps is not None and step >= steps
    parent = (record.get("parent") or {}).get("path")
    return RunInfo(
        path=path,
        name=str(path.relative_to(runs)),
        phase=str(config.get("phase", "?")),
        state="training" if is_held(path) else wrong or ("finished" if finished else "stopped"),
        step=step,
        steps=steps,
        metric=metric,
        best=best[1] if best else None,
        size=size_of(path),
        age=time.time() - started(path),
        parent=lasting_name(Path(parent), runs) if parent else None,
        children=tuple(children(path, runs)),
    )


def is_held(path: Path) -> bool:
    """Whether a live process trains in this folder."""
    try:
        with (path / ".lock").open(encoding="utf-8") as handle:
            return try_lock(handle, shared=True) is False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def size_of(path: Path) -> int:
    """Bytes on disk; a file with two names below `path` counts once."""
    files = {}
    for file in path.rglob("*"):
        status = file.lstat()
        blocks = getattr(status, "st_blocks", None)  # Windows has none
        size = status.st_size if blocks is None else blocks * 512
        files[status.st_dev, status.st_ino] = size
    return sum(files.values())


def children(path: Path, runs: Path) -> list[str]:
    """Runs that began from a checkpoint of this one and are still there."""
    lines = {
        line
        for file in path.glob(f"checkpoints/*/{BEGAN_HERE}")
        for line in file.read_text(encoding="utf-8").splitlines()
    }
    there = [Path(line) for line in sorted(lines) if (Path(line) / "config.yaml").is_file()]
    return [str(p.relative_to(runs)) if p.is_relative_to(runs) else str(p) for p in there]


def choose(words: list[str], found: list[RunInfo], *, force: bool) -> list[RunInfo]:
    """The runs that `words` name. ValueError for one that is not there, is training, or is needed
    by a run that stays."""
    chosen: list[RunInfo] = []
    for word in words:
        named = [
            r for r in found if r.name == word.strip("/") or r.name.split("/")[0] == word.strip("/")
        ]
        if not named:
            names = sorted({r.name.split("/")[0] for r in found})
            raise ValueError(f"no run called {word}; there are: {', '.join(names) or 'none'}")
        chosen += [run for run in named if run not in chosen]
    for run in chosen:
        if run.state == "training":
            raise ValueError(
                f"{run.name} is being trained; stop it first (Ctrl-C, or SIGTERM to its process)"
            )
        left = [name for name in run.children if name not in {r.name for r in chosen}]
        if left and not force:
            raise ValueError(
                f"{run.name} is what {left[0]} began from, which could not be begun again without "
                "it; add force=true"
            )
    return chosen


def delete(run: RunInfo) -> None:
    """Delete a run. Killed midway it leaves a folder that is no run any more, and that the next
    call clears away."""
    gone = run.path.with_name(f".{run.path.name}{GOING}")
    run.path.rename(gone)
    shutil.rmtree(gone)
    for leftover in gone.parent.glob(f".*{GOING}"):
        shutil.rmtree(leftover, ignore_errors=True)
    if gone.parent.is_dir() and not any(gone.parent.iterdir()):
        gone.parent.rmdir()


def archive(run: RunInfo, place: Path) -> Path:
    """Pack a run into `place/NAME_TIME.tar` with its SHA-256 in a file next to it, read it back,
    then delete the run.

    The archive has its name only when it is whole. ValueError if one of that name is there already.
    """
    out = place / f"{run.name.replace('/', '_')}.tar"
    if out.exists():
        raise ValueError(f"{out} is there already; move it, or choose another archive_dir=…")
    free = shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free
    if free < run.size * 1.05:
        raise ValueError(
            f"{place} has {free / 1e9:.1f} GB left and {run.name} takes {run.size / 1e9:.1f}"
        )
    place.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.part")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(run.path, arcname=run.name)
        file.flush()
        os.fsync(file.fileno())
    with tarfile.open(temporary) as tar:
        packed = sum(member.isfile() or member.islnk() for member in tar)
    there = sum(p.is_file() for p in run.path.rglob("*"))
    if packed != there:
        raise ValueError(
            f"{temporary} holds {packed} of {there} files of {run.name}; nothing was deleted"
        )
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    out.with_name(f"{out.name}.sha256").write_text(f"{digest}  {out.name}\n", encoding="utf-8")
    temporary.rename(out)
    delete(run)
    return out


def as_row(run: RunInfo) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {**vars(run), "path": str(run.path), "children": list(run.children)}
