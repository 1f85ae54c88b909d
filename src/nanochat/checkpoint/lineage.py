"""Lineage of a checkpoint: command, code, data, seeds, versions. Enough to repeat a run and to
explain a difference."""

import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

MAX_NEW_FILES, MAX_NEW_FILE_BYTES = 100, 200_000  # guess: code, and not data stored in the checkout
PACKAGES = ("torch", "lightning", "hydra-core", "tokenizers", "datasets", "numpy", "nanochat")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def code_state() -> dict[str, Any]:
    """Commit and uncommitted diff (new files included) of the checkout that this code runs from;
    empty for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None, "diff": ""}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
        ).stdout

    try:
        new = git("ls-files", "--others", "--exclude-standard").splitlines()
        small = [
            name
            for name in new
            if (root / name).is_file() and (root / name).stat().st_size <= MAX_NEW_FILE_BYTES
        ]
        diff = git("diff", "HEAD") + "".join(
            git("diff", "--no-index", "--", "/dev/null", name) for name in small[:MAX_NEW_FILES]
        )
        return {
            "commit": git("rev-parse", "HEAD").strip() or None,
            "dirty": bool(git("status", "--porcelain").strip()),
            "diff": diff,
        }
    except (OSError, subprocess.TimeoutExpired):
        return {"commit": None, "dirty": None, "diff": ""}


def command_line() -> str:
    import shlex

    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    start = (
        ["python", "-m", module.name.removesuffix(".__main__")]
        if module and module.name
        else ["python", Path(sys.argv[0]).name]
    )
    return shlex.join([*start, *sys.argv[1:]])


def parent_hash(checkpoint: Path) -> str:
    """Hash of a parent checkpoint: of its weights file and config."""
    digest = hashlib.sha256((checkpoint / "config.json").read_bytes())
    with (checkpoint / "model.safetensors").open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
