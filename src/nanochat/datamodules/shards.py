"""Token shards: text tokenized once, by several processes, into files that training memory-maps.

A shard is three files in the folder of its source and tokenizer: `.bin` (token ids, uint16 or
uint32, <|bos|> before every document), `.offsets.npy` (int64, documents + 1) and `.json` (counts,
sizes, sha256). Its name holds a hash of the part's content and of the settings that determine its
documents, so that shards of unchanged parts are found again when other parts are added.

Each file is written under a temporary name, synced and renamed, the `.json` last. A shard without
`.json`, or whose files have another size or sha256 than recorded, is built again (files are hashed
once, and again if the system reports a change: `journal.file_sha256`). During a build the builder
holds a lock that ends with its process. Any number of builders can therefore work on one folder,
killed builders leave nothing to clean up, and where locks do not work only time is lost. Only as
many builders are started as there are cores: a second process that needs the same shards stands by
(`Builders`).

Training does not wait for all shards: `ShardFolder.open` waits for the requested one, and builds it
itself if no builder will.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from nanochat.checkpoint import hashes
from nanochat.datamodules.journal import digest, file_sha256
from nanochat.datamodules.sources import SPLITS, SourcePart, TextSource
from nanochat.runtime.disk import fsync
from nanochat.runtime.locks import child_fds, try_lock
from nanochat.runtime.signals import leave_signals, once, stdin_ends

FORMAT = 1  # version of the files; readers accept no other
POLL_SECONDS = 0.05  # guess: polling interval of a waiting loader
MESSAGE_SECONDS = 15.0  # guess: interval between messages of a waiting loader
# guess: with no builder at work for this long, a waiting loader builds the shard itself
ALONE_SECONDS = 10.0
# guess: interval for checking whether another process's builders have ended
STAND_BY_SECONDS = 1.0
SMALL_BYTES = 4 * 2**20  # guess: less text is tokenized before processes have started

log = logging.getLogger("nanochat.data")


class ShardError(ValueError):
    """The error of a shard's build, in one line.

    A DataLoader worker passes an error on as a new one of the same class whose message is a
    traceback; this class keeps only the last line of it.
    """

    def __init__(self, text: str):
        super().__init__(" ".join(text.rsplit(f"{ShardError.__name__}: ", 1)[-1].split()))


class Encoder(Protocol):
    """The part of a tokenizer that this file needs."""

    vocab_size: int
    bos_id: int
    hash: str

    def encode_array(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Any) -> str: ...


@dataclass(frozen=True)
class ShardSpec:
    """The shard of a part, built or not: `stem` is its file name without suffix."""

    part: SourcePart
    split: str
    stem: str


@dataclass(frozen=True)
class Shard:
    """An open shard. tokens (N,) uint16 or uint32 and offsets (documents + 1,) int64 are views of
    the files."""

    name: str
    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


class ShardFolder:
    """The shards of one source and tokenizer: which are planned, which are ready, and building the
    rest."""

    def __init__(self, source: TextSource, tokenizer: Encoder, folder: Path):
        self.source = source
        self.tokenizer = tokenizer
        self.folder = folder / f"{source.name}-{tokenizer.hash}"
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        settings = {"settings": source.settings(), "source": source.name, "format": FORMAT}
        self._said: set[str] = set()  # damaged files already reported
        self.specs = {
            split: [self._spec(part, split, settings) for part in source.parts(split)]
            for split in SPLITS
        }

    def _spec(self, part: SourcePart, split: str, settings: dict[str, Any]) -> ShardSpec:
        key = digest({**settings, "part": part.sha256, "split": split}, 12)
        readable = re.sub(r"[^A-Za-z0-9_+~.-]", "_", part.name)[-80:]
        return ShardSpec(part, split, f"{split}-{readable}-{key}")

    @property
    def order(self) -> list[ShardSpec]:
        """All shards in build order: those that training and validation need first come first."""
        pairs = zip_longest(self.specs["train"], self.specs["val"])
        return [spec for pair in pairs for spec in pair if spec is not None]

    @property
    def claim(self) -> Path:
        """The lock file that the builders of exactly these shards hold."""
        return self.folder / f"builders-{digest([spec.stem for spec in self.order], 12)}.lock"

    def _path(self, spec: ShardSpec, ending: str) -> Path:
        return self.folder / (spec.stem + ending)

    def meta(self, spec: ShardSpec) -> dict[str, Any] | None:
        """The record of a complete shard, else None."""
        try:
            meta = json.loads(self._path(spec, ".json").read_text(encoding="utf-8"))
            whole = (
                meta["format"] == FORMAT
                and meta["dtype"] == self.dtype.name
                and self._path(spec, ".bin").stat().st_size == meta["bin_bytes"]
                and self._path(spec, ".offsets.npy").stat().st_size == meta["offsets_bytes"]
                and self._undamaged(spec, meta)
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return meta if whole else None

    def _undamaged(self, spec: ShardSpec, meta: dict[str, Any]) -> bool:
        if not hashes.wanted():
            return True
        for ending, key in ((".bin", "bin_sha256"), (".offsets.npy", "offsets_sha256")):
            path = self._path(spec, ending)
            if file_sha256(path) != meta[key]:
                if path.name not in self._said:
                    log.warning(
                        "%s is damaged or was changed (sha256); building it again from its text",
                        path,
                    )
                    self._said.add(path.name)
                return False
        return True

    def failed(self, spec: ShardSpec) -> str | None:
        """The error that building the shard ended with, if any."""
        try:
            return self._path(spec, ".error").read_text(encoding="utf-8")
        except OSError:
            return None

    def missing(self) -> list[ShardSpec]:
        """The shards that are not complete, in build order."""
        return [spec for spec in self.order if self.meta(spec) is None]

    # ---- opening

    def open(self, spec: ShardSpec) -> Shard:
        """The shard, as soon as it is ready.

        Waits with a message while others build it; builds it here if nobody does. Raises ShardError
        with the error of its build.
        """
        begin = said = alone = time.monotonic()
        while self.meta(spec) is None:
            now = time.monotonic()
            if error := self.failed(spec):
                raise ShardError(error)
            if self.in_progress():
                alone = now
            elif now - alone > ALONE_SECONDS:
                log.warning("no process builds %s; building it here", spec.stem)
                try:
                    self.build(spec)
                except (ValueError, OSError) as reason:
                    raise ShardError(str(reason)) from reason
                continue
            if now - said > MESSAGE_SECONDS:
                said = now
                ready = len(self.order) - len(self.missing())
                log.warning(
                    "waiting for token shard %s (%d of %d ready, %.0f s so far)",
                    spec.part.name,
                    ready,
                    len(self.order),
                    now - begin,
                )
            time.sleep(POLL_SECONDS)
        offsets = np.load(self._path(spec, ".offsets.npy"))
        return Shard(spec.part.name, _map(self._path(spec, ".bin"), self.dtype), offsets)

    def in_progress(self) -> bool:
        """Whether any process is building shards in this folder."""
        return any(_locked(path) for path in self.folder.glob("*.lock"))

    # ---- building

    def build(self, spec: ShardSpec) -> bool:
        """Build one shard. False if it exists or another process is building it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self._path(spec, ".lock")) as held:
            if held == "theirs" or self.meta(spec) is not None:
                return False
            if held == "mine":  # the temporary files are a killed builder's
                for left in self.folder.glob(f"{glob_escape(spec.stem)}.*.tmp"):
                    left.unlink(missing_ok=True)
            self._path(spec, ".error").unlink(missing_ok=True)
            self._write(spec)
        return True

    def _write(self, spec: ShardSpec) -> None:
        mark = f".{uuid.uuid4().hex[:8]}.tmp"
        notes: Counter[str] = Counter()
        lengths: list[int] = []
        characters, sha = 0, hashlib.sha256()
        binary = self._path(spec, f".bin{mark}")
        try:
            with binary.open("wb") as file:
                for text in self.source.read(spec.part, spec.split, notes):
                    characters += len(text)
                    ids = self.tokenizer.encode_array(text)
                    tokens = np.empty(len(ids) + 1, dtype=self.dtype)  # (1 + document,)
                    tokens[0] = self.tokenizer.bos_id
                    tokens[1:] = ids
                    lengths.append(len(tokens))
                    raw = tokens.tobytes()
                    sha.update(raw)
                    file.write(raw)
                _sync(file)
            offsets = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))]).astype(
                np.int64
            )
            table = self._path(spec, f".offsets.npy{mark}")
            with table.open("wb") as file:
                np.save(file, offsets)
                _sync(file)
            meta = {
                "format": FORMAT,
                "source": self.source.name,
                "part": spec.part.name,
                "part_sha256": spec.part.sha256,
                "split": spec.split,
                "tokenizer": self.tokenizer.hash,
                "dtype": self.dtype.name,
                "documents": len(lengths),
                "characters": characters,
                "tokens": int(offsets[-1]),
                "bin_bytes": binary.stat().st_size,
                "bin_sha256": sha.hexdigest(),
                "offsets_bytes": table.stat().st_size,
                "offsets_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
                "notes": dict(notes),
            }
            record = self._path(spec, f".json{mark}")
            with record.open("w", encoding="utf-8") as lines:
                json.dump(meta, lines, indent=1)
                _sync(lines)
            for temporary, ending in ((binary, ".bin"), (table, ".offsets.npy"), (record, ".json")):
                os.replace(temporary, self._path(spec, ending))
            with contextlib.suppress(OSError):  # not possible on every file system
                fsync(self.folder)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(
                error.errno,
                f"cannot write {binary}: {error.strerror}; free space or set NANOCHAT_BASE_DIR",
            ) from None
        finally:
            for left in self.folder.glob(f"{glob_escape(spec.stem)}.*{mark}"):
                left.unlink(missing_ok=True)

    def build_all(self) -> None:
        """Build the missing shards in order, sharing the work with other builders, until all are
        ready.

        The error of a shard is written to an `.error` file next to it, for processes that wait for
        it, and raised at the end.
        """
        failed: dict[ShardSpec, Exception] = {}
        while left := [spec for spec in self.missing() if spec not in failed]:
            built = 0
            for spec in left:
                try:
                    built += self.build(spec)
                except Exception as error:
                    failed[spec] = error
                    text = " ".join(str(error).split()) or type(error).__name__
                    with contextlib.suppress(OSError):
                        self._path(spec, ".error").write_text(text, encoding="utf-8")
            if not built:  # other processes are building the rest
                for spec in left:
                    if theirs := self.failed(spec):
                        failed[spec] = ShardError(theirs)
                time.sleep(POLL_SECONDS)
        for first in failed.values():
            raise first

    def forget_errors(self) -> None:
        """Remove the error files of an earlier attempt."""
        for path in self.folder.glob("*.error"):
            path.unlink(missing_ok=True)

    def check_space(self) -> None:
        """OSError if the disk is too small for what is still to be downloaded and written."""
        need = sum(self._estimate(spec) for spec in self.missing()) + self.source.download_bytes()
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if need > free:
            raise OSError(
                f"token shards and what they are made from need about {need / 1e9:,.1f} GB more in "
                f"{self.folder} and {free / 1e9:,.1f} GB are free; set NANOCHAT_BASE_DIR to a "
                "larger disk, or take less (data.num_shards)"
            )

    def _estimate(self, spec: ShardSpec) -> float:
        share = 1.0
        if spec.split == "val" and spec.part in self.source.parts("train"):
            share = 0.05  # guess: above any val_fraction in conf/
        # guess: characters per token with a small vocabulary; 3.5 to 4.8 are usual for larger ones
        bytes_per_token = 1.0 if getattr(self.tokenizer, "kind", "bpe") == "char" else 3.0
        return share * self.source.text_bytes(spec.part) / bytes_per_token * self.dtype.itemsize

    def start_builders(self, processes: int | None = None) -> "Builders | None":
        """Build what is missing in background processes, by default one per core.

        A small amount of text (or processes=0) is built directly. Shards that another process's
        builders work on are left to them. None if there is nothing to wait for.
        """
        missing = self.missing()
        if not missing:
            return None
        if not _locked(self.claim):
            self.forget_errors()
            self.check_space()
        size = sum(self.source.text_bytes(spec.part) for spec in missing)
        if processes is None:
            processes = 0 if size < SMALL_BYTES else min(cores(), len(missing))
        if processes == 0 and not self.in_progress():
            self.build_all()
            return None
        return Builders(self, max(processes, 1))


class Builders:
    """`count` processes that build a folder's missing shards. They end with the process that
    started them.

    The builders hold the folder's claim. While they run, no other process starts builders for the
    same shards; it stands by, and starts its own when they have ended, for whatever reason, with
    shards still missing.
    """

    def __init__(self, folder: ShardFolder, count: int):
        self.folder = folder
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []
        if not self._start():
            log.info("the missing token shards are being built by another process")
            threading.Thread(target=self._stand_by, daemon=True).start()

    def _stand_by(self) -> None:
        while True:
            while _locked(self.folder.claim):
                time.sleep(STAND_BY_SECONDS)
            # an error file is for processes that wait for the shard; it does not stop another
            # attempt
            if all(self.folder.failed(spec) for spec in self.folder.missing()) or self._start():
                return

    def _start(self) -> bool:
        """Start the processes. False if other builders are at work."""
        claim = _claim(self.folder.claim)
        if claim is None:
            return False
        left, whole = len(self.folder.missing()), len(self.folder.order)
        log.info("%d of %d token shards to build, %d processes", left, whole, self.count)
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        start = (
            "import pickle, sys; sys.path[:] = "
            "pickle.loads(sys.stdin.buffer.read(int(sys.argv[1])))"
        )
        code = f"{start}; from nanochat.datamodules.shards import work; work(int(sys.argv[2]))"
        paths = pickle.dumps(sys.path)
        body = pickle.dumps(self.folder)
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(len(paths)), str(len(body))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=child_fds(claim),
            )
            assert process.stdin is not None
            process.stdin.write(paths + body)
            # and left open: when it closes, the child knows that this process has ended
            process.stdin.flush()
            self.processes.append(process)
        claim.close()  # the children hold it now
        return True

    def wait(self, specs: Sequence[ShardSpec]) -> None:
        """Wait until these shards are ready. ShardError with the error of their build."""
        for spec in specs:
            self.folder.open(spec)


def work(size: int) -> None:
    """A builder process: build until nothing is left, or until the process that started it has
    ended.

    The first `size` bytes on stdin are the pickled folder.
    """
    body = sys.stdin.buffer.read(size)
    once(stdin_ends, lambda: os._exit(1))
    leave_signals()
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # guess: training on the same cores has priority
    folder: ShardFolder = pickle.loads(body)
    try:
        folder.build_all()
    except Exception:
        os._exit(1)  # the error is in the file next to the shard
    folder.claim.unlink(missing_ok=True)  # nothing is left to claim
    os._exit(0)


def cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """A file as a memory-mapped, read-only array."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, dtype=dtype)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        # documents are read in shuffled order; let the disk read in its own
        mapped.madvise(mmap.MADV_WILLNEED)
    return np.frombuffer(mapped, dtype=dtype)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def glob_escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[str]:
    """ "mine" while this process alone holds the lock file, "theirs" if another process does,
    "unknown" where the system has no such locks. The lock ends with the process, even if it is
    killed."""
    with path.open("a", encoding="utf-8") as file:
        held = try_lock(file)
        if held and path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            try:
                yield "mine"
            finally:
                with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
                    path.unlink(missing_ok=True)
        else:  # held, or removed by its last holder meanwhile
            yield "unknown" if held is None else "theirs"


def _claim(path: Path) -> IO[str] | None:
    """The open lock file, locked as long as it or a child's copy of it is open; None if another
    process holds it. Where the system has no such locks, every process gets it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", encoding="utf-8")
    for _ in range(3):  # `_locked` holds it for a moment
        if try_lock(file) is not False:
            return file
        time.sleep(POLL_SECONDS)
    file.close()
    return None


def _locked(path: Path) -> bool:
    try:
        with path.open("r", encoding="utf-8") as file:
            return try_lock(file, shared=True) is False
    except OSError:
        return False
