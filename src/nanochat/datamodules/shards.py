"""Token shards: text tokenized once, by several processes, into files that training maps into memory.

A shard is three files in the folder of its source and tokenizer: `.bin` (token ids, uint16 or uint32, every document
with <|bos|> before it), `.offsets.npy` (int64, documents + 1) and `.json` (counts, sizes, sha256). Its name holds a
hash of the part's content and of the settings that decide its documents: shards of parts that did not change are
found again whatever else was added. Each file is written under a temporary name, synced and renamed, the `.json`
last; a shard without it, or whose files have not the recorded size or sha256, is built again (hashed once, and again
when the system shows a change of the file: `journal.file_sha256`). While one is built its builder
holds a lock that ends with the process, so any number of builders may work on a folder at once, killed ones leave
nothing to clear up, and nothing but time is lost where locks do not work. Only as many are started as there are
cores, though: a second process that wants the same shards stands by (`Builders`).

Nobody has to wait for all shards: `ShardFolder.open` waits for the one it is asked for, and builds it itself if
nobody else is about to.
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
from nanochat.datamodules.sources import SPLITS, Part, TextSource
from nanochat.runtime.signals import leave_signals, once, stdin_ends

FORMAT = 1  # of the files; a reader knows no other
POLL_SECONDS = 0.05  # guess: how often a waiting loader looks
MESSAGE_SECONDS = 15.0  # guess: how often a waiting loader says so
ALONE_SECONDS = 10.0  # guess: with no builder at work for so long, a waiting loader builds by itself
STAND_BY_SECONDS = 1.0  # guess: how often it is looked whether another process's builders are gone
SMALL_BYTES = 4 * 2**20  # guess: less text than this is tokenized sooner than processes start

log = logging.getLogger("nanochat.data")


class ShardError(ValueError):
    """What building a shard ran into, in one line. A DataLoader worker hands an error on as a new one of its kind whose
    message is a traceback; this kind keeps only the line at its end."""

    def __init__(self, text: str):
        super().__init__(" ".join(text.rsplit(f"{ShardError.__name__}: ", 1)[-1].split()))


class Encoder(Protocol):
    """What this layer needs of a tokenizer."""

    vocab_size: int
    bos_id: int
    hash: str

    def encode_array(self, text: str) -> np.ndarray: ...

    def decode(self, ids: Any) -> str: ...


@dataclass(frozen=True)
class ShardSpec:
    """The shard that a part will be or is: `stem` is its file name without ending."""

    part: Part
    split: str
    stem: str


@dataclass(frozen=True)
class Shard:
    """An open shard. tokens (N,) uint16 or uint32 and offsets (documents + 1,) int64 are views of the files."""

    name: str
    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)


class ShardFolder:
    """The shards of one source and tokenizer: which there are to be, which are ready, and building the rest."""

    def __init__(self, source: TextSource, tokenizer: Encoder, folder: Path):
        self.source = source
        self.tokenizer = tokenizer
        self.folder = folder / f"{source.name}-{tokenizer.hash}"
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        settings = {"settings": source.settings(), "source": source.name, "format": FORMAT}
        self._said: set[str] = set()  # damaged files that were told of
        self.specs = {split: [self._spec(part, split, settings) for part in source.parts(split)] for split in SPLITS}

    def _spec(self, part: Part, split: str, settings: dict[str, Any]) -> ShardSpec:
        key = digest({**settings, "part": part.sha256, "split": split}, 12)
        readable = re.sub(r"[^A-Za-z0-9_+~.-]", "_", part.name)[-80:]
        return ShardSpec(part, split, f"{split}-{readable}-{key}")

    @property
    def order(self) -> list[ShardSpec]:
        """All shards in the order to build them: what training and validation need first comes first."""
        pairs = zip_longest(self.specs["train"], self.specs["val"])
        return [spec for pair in pairs for spec in pair if spec is not None]

    @property
    def claim(self) -> Path:
        """The lock that builder processes of just these shards hold."""
        return self.folder / f"builders-{digest([spec.stem for spec in self.order], 12)}.lock"

    def _path(self, spec: ShardSpec, ending: str) -> Path:
        return self.folder / (spec.stem + ending)

    def meta(self, spec: ShardSpec) -> dict[str, Any] | None:
        """The record of a shard that is whole, else None."""
        try:
            meta = json.loads(self._path(spec, ".json").read_text())
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
                    log.warning("%s is damaged or was changed (sha256): it is made again from its text", path)
                    self._said.add(path.name)
                return False
        return True

    def failed(self, spec: ShardSpec) -> str | None:
        """What building a shard ran into, if it did."""
        try:
            return self._path(spec, ".error").read_text()
        except OSError:
            return None

    def missing(self) -> list[ShardSpec]:
        """The shards that are not whole, in the order to build them."""
        return [spec for spec in self.order if self.meta(spec) is None]

    # ---- opening

    def open(self, spec: ShardSpec) -> Shard:
        """The shard, once it is there. Waits with a message while others build; builds it if no one does. Whatever
        building it ran into is raised here, as ShardError."""
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
        """Whether any process is building shards here."""
        return any(_locked(path) for path in self.folder.glob("*.lock"))

    # ---- building

    def build(self, spec: ShardSpec) -> bool:
        """Make one shard. False if it is there already or another process is making it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self._path(spec, ".lock")) as held:
            if held == "theirs" or self.meta(spec) is not None:
                return False
            if held == "mine":  # then these are a killed builder's
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
            offsets = np.concatenate([[0], np.cumsum(np.array(lengths, dtype=np.int64))]).astype(np.int64)
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
            with record.open("w") as lines:
                json.dump(meta, lines, indent=1)
                _sync(lines)
            for temporary, ending in ((binary, ".bin"), (table, ".offsets.npy"), (record, ".json")):
                os.replace(temporary, self._path(spec, ending))
            _sync_folder(self.folder)
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(
                error.errno, f"cannot write {binary}: {error.strerror}; free space or set NANOCHAT_BASE_DIR"
            ) from None
        finally:
            for left in self.folder.glob(f"{glob_escape(spec.stem)}.*{mark}"):
                left.unlink(missing_ok=True)

    def build_all(self) -> None:
        """Make the missing shards, in order, beside whoever else is making some, until all are there. What a shard
        runs into is left beside it in an `.error` file for those who wait for it, and raised at the end."""
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
                        self._path(spec, ".error").write_text(text)
            if not built:  # all that is left is in other hands
                for spec in left:
                    if theirs := self.failed(spec):
                        failed[spec] = ShardError(theirs)
                time.sleep(POLL_SECONDS)
        for first in failed.values():
            raise first

    def forget_errors(self) -> None:
        """Remove what an earlier attempt ran into, before trying again."""
        for path in self.folder.glob("*.error"):
            path.unlink(missing_ok=True)

    def check_space(self) -> None:
        """OSError if what is still to be written, and downloaded before, does not fit on the disk."""
        need = sum(self._estimate(spec) for spec in self.missing()) + self.source.download_bytes()
        place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if need > free:
            raise OSError(
                f"token shards and what they are made from need about {need / 1e9:,.1f} GB more in {self.folder} and "
                f"{free / 1e9:,.1f} GB are free; set NANOCHAT_BASE_DIR to a larger disk, or take less (data.num_shards)"
            )

    def _estimate(self, spec: ShardSpec) -> float:
        share = 1.0
        if spec.split == "val" and spec.part in self.source.parts("train"):
            share = 0.05  # guess: above any val_fraction in conf/
        # guess: a character, or what a small vocabulary packs into a token; 3.5 to 4.8 are usual for larger ones
        bytes_per_token = 1.0 if getattr(self.tokenizer, "kind", "bpe") == "char" else 3.0
        return share * self.source.text_bytes(spec.part) / bytes_per_token * self.dtype.itemsize

    def start_builders(self, processes: int | None = None) -> "Builders | None":
        """Build what is missing in background processes, by default one for each core. Little text (or processes=0)
        is built here and now, and what another process's builders are at is left to them. None if nothing is left to
        wait for."""
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
    """`count` processes that build a folder's missing shards. They end with the process that started them.

    They themselves hold the folder's claim: while they live nobody else starts any for the same shards, but stands by,
    and starts some once they are gone, however they ended, with shards still to be built.
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
            # an error is for those who wait for the shard, not for trying again
            if all(self.folder.failed(spec) for spec in self.folder.missing()) or self._start():
                return

    def _start(self) -> bool:
        """False if other builders are at work."""
        claim = _claim(self.folder.claim)
        if claim is None:
            return False
        left, whole = len(self.folder.missing()), len(self.folder.order)
        log.info("%d of %d token shards to build, %d processes", left, whole, self.count)
        environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        start = "import pickle, sys; sys.path[:] = pickle.loads(sys.stdin.buffer.read(int(sys.argv[1])))"
        code = f"{start}; from nanochat.datamodules.shards import work; work(int(sys.argv[2]))"
        paths = pickle.dumps(sys.path)
        body = pickle.dumps(self.folder)
        for _ in range(self.count):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(len(paths)), str(len(body))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=[claim.fileno()],
            )
            assert process.stdin is not None
            process.stdin.write(paths + body)
            process.stdin.flush()  # and left open: its end tells the child that we are gone
            self.processes.append(process)
        claim.close()  # theirs now
        return True

    def wait(self, specs: Sequence[ShardSpec]) -> None:
        """Until these shards are there. ShardError with what building them ran into."""
        for spec in specs:
            self.folder.open(spec)


def work(size: int) -> None:
    """A builder process: build until nothing is left, or until the process that started it is gone. `size` bytes on
    its stdin are the pickled folder."""
    body = sys.stdin.buffer.read(size)
    once(stdin_ends, lambda: os._exit(1))
    leave_signals()
    with contextlib.suppress(OSError, AttributeError):
        os.nice(5)  # guess: training on the same cores goes first
    folder: ShardFolder = pickle.loads(body)
    try:
        folder.build_all()
    except Exception:
        os._exit(1)  # the error lies beside the shard
    folder.claim.unlink(missing_ok=True)  # nothing is left to claim
    os._exit(0)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """A file as a read-only array without reading it yet."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.empty(0, dtype=dtype)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)  # documents are read in shuffled order; let the disk read in its own
    return np.frombuffer(mapped, dtype=dtype)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not possible on every system
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def glob_escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[str]:
    """ "mine" while this process alone holds the lock file, "theirs" if another does. It ends with the process,
    however that ends. "unknown" where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        yield "unknown"
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            current = False
        except OSError:  # a file system without locks
            yield "unknown"
            return
        if not current:  # held, or its last holder removed it meanwhile
            yield "theirs"
            return
        try:
            yield "mine"
        finally:
            path.unlink(missing_ok=True)


def _claim(path: Path) -> IO[str] | None:
    """The lock file, held as long as it or a child's copy of it is open; None if another process holds it. Where the
    system has no such locks everybody gets it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    for _ in range(3):  # `_locked` holds it for a moment
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_SECONDS)
        except (ImportError, OSError):
            return file
        else:
            return file
    file.close()
    return None


def _locked(path: Path) -> bool:
    try:
        import fcntl

        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
