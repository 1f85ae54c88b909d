"""Results of evaluations, kept in `CHECKPOINT/evals` with a passport: everything they depend on.

    NAME-KEY.json          evaluation, passport, results, seconds, finished
    NAME-KEY.csv           its numbers
    NAME-KEY.items.jsonl   its items, one a line

KEY is a hash of the passport. A repeated evaluation is therefore read and not computed again,
and results are compared only if their passports differ in nothing but the checkpoint. While
an evaluation runs, each process writes its items into a separate file, from which an
interrupted one continues.
"""

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from nanochat.checkpoint import hashes
from nanochat.checkpoint.atomic import write_json
from nanochat.checkpoint.folder import read_json
from nanochat.evals.items import Item, read_items, write_items

FOLDER = "evals"
OF_THE_MODEL = ("model.safetensors", "config.json", "tokenizer.json", "token_bytes.npy")


@dataclass(frozen=True)
class Stored:
    evaluation: str
    passport: dict[str, Any]
    results: dict[str, Any]
    seconds: float
    finished: str  # when, in UTC
    path: Path  # of the JSON

    @property
    def items(self) -> list[Item]:
        file = self.path.with_suffix(".items.jsonl")
        return read_items(file) if file.is_file() else []


def read_results(checkpoint: Path) -> list[Stored]:
    """The results kept for a checkpoint, oldest first. Unreadable files are left out."""
    found = []
    for path in (checkpoint / FOLDER).glob("*.json"):
        with contextlib.suppress(ValueError, TypeError, OSError):
            found.append(Stored(**read_json(path), path=path))
    return sorted(found, key=lambda stored: stored.finished)


def checkpoint_hash(path: Path) -> str:
    """Hash of weights, sizes and tokenizer of a checkpoint folder; for other
    folders, of all files."""
    known = {}
    if (path / "files.json").is_file():
        known = {
            name: facts.get(hashes.HASH)
            for name, facts in read_json(path / "files.json").items()
            if name in OF_THE_MODEL and isinstance(facts, dict)
        }
    if "model.safetensors" not in known:
        files = [p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
        known = {p.name: hashes.file_hash(p) for p in files}
    return short_hash(known)


def short_hash(data: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(data, sort_keys=True, default=str).encode())


def differences(passports: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which the passports of several checkpoints differ, so that their numbers
    must not be compared."""
    fields = {field for one in passports for field in one} - {"checkpoint"}
    return sorted(f for f in fields if any(one.get(f) != passports[0].get(f) for one in passports))


class Keeper:
    """The stored result of one evaluation of one checkpoint. If it cannot be
    written it is not kept."""

    def __init__(self, checkpoint: Path, evaluation: str, passport: dict[str, Any]) -> None:
        self.evaluation, self.passport = evaluation, passport
        self.path = checkpoint / FOLDER / f"{evaluation}-{short_hash(passport)}.json"

    def stored(self) -> Stored | None:
        try:
            return Stored(**read_json(self.path), path=self.path)
        except (OSError, ValueError, TypeError):
            return None

    def recorded(self) -> dict[tuple[str, int], Item]:
        """Items judged by the processes of an interrupted evaluation."""
        found = {}
        for part in self._parts():
            for line in part.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(
                    ValueError, TypeError, KeyError
                ):  # the last line is incomplete
                    item = Item(**json.loads(line))
                    found[item.task, item.index] = item
        return found

    @contextlib.contextmanager
    def recording(self, rank: int) -> Iterator[Any]:
        """A function that writes an item of this process immediately."""
        try:
            self.path.parent.mkdir(exist_ok=True)
            file = self._part(rank).open("a", encoding="utf-8")
        except OSError:
            yield lambda item: None
            return
        with file:
            if file.tell():
                file.write("\n")  # after an incomplete line

            def record(item: Item) -> None:
                file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
                file.flush()

            yield record

    def keep(self, results: dict[str, Any], seconds: float) -> str | None:
        """Write the results of all processes. Returns the reason if they cannot
        be written, else None."""
        items = sorted(self.recorded().values(), key=lambda item: (item.task, item.index))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self.path.parent.mkdir(exist_ok=True)
            if items:
                temporary = self.path.with_suffix(".items.writing")
                write_items(temporary, items)
                temporary.rename(self.path.with_suffix(".items.jsonl"))
            with self.path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file)
                rows.writerow(["number", "value"])
                rows.writerows([k, v] for k, v in results.items() if isinstance(v, int | float))
            stored = Stored(self.evaluation, self.passport, results, seconds, now, self.path)
            write_json(self.path, {k: v for k, v in asdict(stored).items() if k != "path"})
        except OSError as error:
            return f"{self.path.parent} cannot be written, so results are not kept ({error})"
        for part in self._parts():
            part.unlink()
        return None

    def _part(self, rank: int) -> Path:
        return self.path.with_suffix(f".part{rank}")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.part*"))
