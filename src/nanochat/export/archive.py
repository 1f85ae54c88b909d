"""Packing checkpoints for another machine: a .tar of each, and SHA256SUMS, which
`sha256sum -c` checks at the destination. An archive gets its name only when it is complete,
and is not packed again while its sources are unchanged, so a call that was killed or ran out
of disk space is simply repeated.
"""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

from nanochat.checkpoint.atomic import write_json
from nanochat.checkpoint.certificate import sha256

SUMS, CONTENTS = "SHA256SUMS", "contents.json"
RUN_FILES = ("config.yaml", "record.json", "metrics.csv", "samples", "rollouts.jsonl")


def piece_name(checkpoint: Path) -> str:
    """
    >>> piece_name(Path("/b/runs/base-d4/2026-01-31_10-00-00Z/checkpoints/step_000500"))
    'base-d4_2026-01-31_10-00-00Z_step_000500'
    """
    parts = checkpoint.absolute().parts
    in_run = len(parts) > 4 and parts[-2] == "checkpoints"
    return "_".join((*parts[-4:-2], parts[-1])) if in_run else "_".join(parts[-2:]).strip("/")


def files_to_pack(checkpoint: Path, *, trainer: bool) -> dict[str, Path]:
    """Name inside the archive -> file: the checkpoint with its evaluations, and the record of its
    run."""
    found = {
        f"checkpoint/{path.relative_to(checkpoint)}": path
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and (trainer or path.relative_to(checkpoint).parts[0] != "trainer")
    }
    run = checkpoint.parent.parent
    if checkpoint.parent.name == "checkpoints":
        for name in RUN_FILES:
            top = run / name
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                if path.is_file():
                    found[f"run/{path.relative_to(run)}"] = path
    return found


def fingerprint(files: dict[str, Path]) -> str:
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files.items()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def pack(checkpoints: list[Path], out: Path, *, trainer: bool = False) -> dict[str, bool]:
    """Pack every checkpoint into `out`; archive -> whether it was packed now (False: it existed).
    OSError if the disk has no room for the next one; the finished archives stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.part"):
        leftover.unlink()
    file = out / CONTENTS
    contents = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    done = {}
    for checkpoint in checkpoints:
        files = files_to_pack(checkpoint, trainer=trainer)
        piece, mark = out / f"{piece_name(checkpoint)}.tar", fingerprint(files)
        known = contents.get(piece.name, {})
        whole = piece.is_file() and known.get("of") == mark
        done[piece.name] = not (whole and sha256(piece) == known["sha256"])
        if done[piece.name]:
            _pack_one(piece, files)
            contents[piece.name] = {"of": mark, "sha256": sha256(piece), "from": str(checkpoint)}
            write_json(file, contents)
            lines = [f"{facts['sha256']}  {name}\n" for name, facts in sorted(contents.items())]
            (out / SUMS).write_text("".join(lines), encoding="utf-8")
    return done


def _pack_one(piece: Path, files: dict[str, Path]) -> None:
    need, free = sum(p.stat().st_size for p in files.values()), shutil.disk_usage(piece.parent).free
    if free < need * 1.01:
        raise OSError(
            f"{piece.parent} has {free / 1e9:.1f} GB left and {piece.name} takes {need / 1e9:.1f}; "
            "free some and type the same again: the pieces before it are kept"
        )
    temporary = piece.with_name(f".{piece.name}.part")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, path in files.items():
                tar.add(path, arcname=f"{piece.stem}/{name}")
        file.flush()
        os.fsync(file.fileno())
    with tarfile.open(temporary) as tar:
        assert sum(1 for _ in tar) == len(files), "a file is missing in the archive"
    temporary.replace(piece)
