"""The certificate of an exported folder: that it computes the same as the checkpoint it was made
from. `export/proof.py` creates it, with the SHA-256 of every file (the hub shows the same hash for
weights), so the folder can be checked at any time. Three colours:

    green     compared in its runtime and found equal; no file has changed since
    red       compared and found different, or a file was changed, removed or added
    unproven  not compared, because its runtime was not installed

It detects damage and mistakes, not forgery: nothing is signed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from nanochat.checkpoint import hashes

CERTIFICATE = "certificate.json"
FREE = ("README.md", CERTIFICATE, ".gitattributes", ".gitignore")  # may be edited
LOADED = (".py", ".json", ".safetensors", ".jinja", ".bin", ".pt", ".pkl", ".model", ".npy")


class Status(NamedTuple):
    colour: str  # green, red or unproven
    why: str


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Relative name -> path of the files that the model consists of."""
    found = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        name: path
        for name, path in found.items()
        if name not in FREE and not name.startswith((".cache/", ".git/", ".eval_results/"))
    }


def _seal(data: dict[str, Any]) -> str:
    rest = {key: value for key, value in data.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_certificate(folder: Path, data: dict[str, Any]) -> None:
    """`data` has `verdict` (a colour) and `why`; the hashes of the files and a hash of all of it
    are added."""
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for name, path in files_of(folder).items()
    }
    whole: dict[str, Any] = {**data, "files": files}
    whole["seal"] = _seal(whole)
    (folder / CERTIFICATE).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def read_certificate(folder: Path) -> dict[str, Any]:
    """ValueError if there is none, or if it is damaged."""
    file = folder / CERTIFICATE
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {CERTIFICATE}; python -m nanochat.export ckpt=… out=DIR writes a "
            "folder that has one"
        )
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["seal"] != _seal(data):
            raise ValueError("it was changed")
        return data
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def colour_of(folder: Path) -> Status:
    """The colour of an exported folder as it is now; every file is read."""
    try:
        data = read_certificate(folder)
    except ValueError as error:
        return Status("red", str(error))
    there = files_of(folder)
    for name, facts in data["files"].items():
        if name not in there:
            return Status("red", f"{folder / name} is missing")
        same = there[name].stat().st_size == facts["bytes"]
        if not same or (hashes.wanted() and sha256(there[name]) != facts["sha256"]):
            return Status("red", f"{folder / name} is not the file that was exported")
    for name in there.keys() - data["files"].keys():
        if name.endswith(LOADED):
            return Status("red", f"{folder / name} is not of this export; move it elsewhere")
    return Status(data["verdict"], data["why"])


def require_not_red(folder: Path, *, force: bool = False) -> None:
    """ValueError if the folder is an export with a red certificate. Without a certificate it is
    none."""
    if force or not (folder / CERTIFICATE).is_file():
        return
    found = colour_of(folder)
    if found.colour == "red":
        raise ValueError(
            f"the certificate of {folder} is red: {found.why}; export it again, or add force=true"
        )
