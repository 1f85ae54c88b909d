"""Files of a Hugging Face data set: listing them, and fetching each whole and once.

With a local mirror (`paths.hub_dir`) files are taken from `<mirror>/<org>/<name>/`, without network
access. Without a mirror, the list of files with sizes and checksums is fetched from the hub once
and stored. It is pinned to that commit, so that a run's manifest never changes. Files are
downloaded by `huggingface_hub`, which resumes interrupted downloads and lets one process at a time
fetch a file. A file counts as present only after its checksum was compared.
"""

import contextlib
import copy
import fnmatch
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from nanochat.datamodules.journal import Journal, file_sha256
from nanochat.datamodules.readers import suffix
from nanochat.datamodules.sources import FileSource, SourceFile
from nanochat.runtime.paths import base_dir, hub_dir

ATTEMPTS = 5  # from: facts sheet 4.1, with waits of 2, 4, 8 and 16 seconds
PARALLEL = 4  # from: facts sheet 4.1
LISTING_CHUNK = 500  # guess: names per request
CHARACTERS_PER_SHARD = 250_000_000  # from: facts sheet 4.1, a minimum
CHARACTERS_PER_TOKEN = 4.8  # from: facts sheet 3.2, the rule of thumb of nanochat's scripts
# share of the tokens that a packing discards; from: facts sheet 4.2, at T=2048 (more with shorter
# rows)
CROPPED = {"best_fit": 0.346, "stream": 0.0}
# from: facts sheet 3.2 and 9, what nanochat downloads for its tokenizer, which reads 2e9 characters
LEAST_SHARDS = 8
SPLIT_NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}

log = logging.getLogger("nanochat.data")


class HubDataset:
    """The files of one data set, in a mirror or on the hub.

    `revision` is a commit, branch or tag (None: the commit of the first access).
    """

    def __init__(self, dataset: str, revision: str | None = None, mirror_only: bool = False):
        self.dataset = dataset
        mirror = hub_dir()
        self.mirror = mirror / dataset if mirror else None
        self.folder = self.mirror or base_dir() / "hub" / dataset
        self.revision = revision
        self._verified = Journal(self.folder / ".nanochat-verified.jsonl")
        if self.mirror and not self.mirror.is_dir():
            raise FileNotFoundError(
                f"{dataset} is not in the mirror {mirror}; choose other data, or unset "
                "NANOCHAT_HUB_DIR"
            )
        if mirror_only and not self.mirror:
            raise ValueError(
                f"{dataset} is only in a local mirror; set NANOCHAT_HUB_DIR to the folder with "
                f"{dataset}/"
            )

    def files(self, names: Sequence[str] | None = None) -> list[SourceFile]:
        """The named files, or all, with size and checksum. FileNotFoundError for an
        unknown name."""
        if self.mirror:
            if names is None:
                paths = [p for p in sorted(self.mirror.rglob("*")) if p.is_file()]
                names = [
                    p.relative_to(self.mirror).as_posix()
                    for p in paths
                    if not p.name.startswith(".")
                ]
            return [self._mirrored(name) for name in names]
        return self._listed(names)

    def _mirrored(self, name: str) -> SourceFile:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{name} of {self.dataset} is not in the mirror at {self.folder}"
            )
        return SourceFile(name, path.stat().st_size, file_sha256(path))

    def _listed(self, names: Sequence[str] | None) -> list[SourceFile]:
        listing = _read_json(self._listing_path)
        if self.revision is not None and listing.get("asked", self.revision) != self.revision:
            listing = {}
        known: dict[str, list[Any]] = listing.get("files", {})
        wanted = None if names is None else [name for name in names if name not in known]
        if (wanted is None and not listing.get("whole")) or wanted:
            listing = self._ask(listing, wanted)
            known = listing["files"]
        if names is None:
            names = sorted(known)
        if missing := [name for name in names if name not in known]:
            raise FileNotFoundError(
                f"{missing[0]} is not a file of {self.dataset} on the hub ({len(missing)} not "
                "found)"
            )
        return [SourceFile(name, *known[name]) for name in names]

    @property
    def _listing_path(self) -> Path:
        return self.folder / ".nanochat-files.json"

    def _ask(self, listing: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()

        def ask() -> dict[str, Any]:
            commit = (
                listing.get("commit")
                or api.repo_info(self.dataset, revision=self.revision, repo_type="dataset").sha
            )
            where: dict[str, Any] = {"repo_type": "dataset", "revision": commit}
            found: list[Any] = []
            if names is None:
                found += api.list_repo_tree(self.dataset, recursive=True, **where)
            else:
                for i in range(0, len(names), LISTING_CHUNK):
                    found += api.get_paths_info(
                        self.dataset, list(names[i : i + LISTING_CHUNK]), **where
                    )
            files = {
                f.path: [f.size, f.lfs.sha256 if f.lfs else f.blob_id]
                for f in found
                if isinstance(f, RepoFile)
            }
            whole = names is None or listing.get("whole", False)
            known = {**listing.get("files", {}), **files}
            return {"commit": commit, "asked": self.revision, "whole": whole, "files": known}

        answer = self._insist(ask, "the list of files", attempts=2)  # without a network, fail soon
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self._listing_path.with_name(f"{self._listing_path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(answer), encoding="utf-8")
        os.replace(temporary, self._listing_path)
        return answer

    @property
    def commit(self) -> str | None:
        """The commit of the files; None for a mirror."""
        return None if self.mirror else _read_json(self._listing_path).get("commit", self.revision)

    def present(self, file: SourceFile) -> Path | None:
        """Path of the file if it is complete, else None. A mirror is trusted; a download has had
        its checksum compared."""
        path = self.folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return None
        if self.mirror or self._verified.get(file.name) == [file.sha256, path.stat().st_mtime_ns]:
            return path
        return None

    def fetch(self, file: SourceFile) -> Path:
        """Path of the file, downloaded if needed, in up to 5 attempts. OSError if that fails or its
        checksum stays wrong."""
        if found := self.present(file):
            return found
        if self.mirror:
            raise FileNotFoundError(
                f"{file.name} of {self.dataset} is not whole in the mirror at {self.folder}"
            )
        from huggingface_hub import hf_hub_download

        commit, path = self.commit, self.folder / file.name
        again = False

        def download() -> Path:
            nonlocal again
            hf_hub_download(
                self.dataset,
                file.name,
                repo_type="dataset",
                revision=commit,
                local_dir=self.folder,
                force_download=again,
            )
            again = True
            if path.stat().st_size != file.size or checksum(path, file.sha256) != file.sha256:
                raise OSError(
                    f"{path} arrived with a wrong checksum; check for a proxy between this machine "
                    "and the hub"
                )
            self._verified.put(file.name, [file.sha256, path.stat().st_mtime_ns])
            return path

        return self._insist(download, file.name)

    def fetch_all(
        self, files: Sequence[SourceFile], say: Callable[[str], None]
    ) -> Generator[SourceFile, None, None]:
        """Fetch all files, PARALLEL at a time, reporting progress with `say`; each is yielded in
        order when complete.

        If the caller stops iterating, only downloads that have started are finished.
        """
        if not files:
            return
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # bars of single files; there are many
        total, done, begin = sum(file.size for file in files), 0, time.monotonic()
        pool = ThreadPoolExecutor(PARALLEL)
        try:
            jobs = [pool.submit(self.fetch, file) for file in files[:PARALLEL]]
            for i, file in enumerate(files):
                jobs[i].result()
                jobs += [
                    pool.submit(self.fetch, later) for later in files[len(jobs) : len(jobs) + 1]
                ]
                done += file.size
                rate = done / max(time.monotonic() - begin, 1e-9)
                left = (total - done) / rate
                size = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
                say(
                    f"{i + 1} of {len(files)} files, {size}, {rate / 1e6:.1f} MB/s, {left:.0f} s "
                    "left"
                )
                yield file
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _insist(self, act: Callable[[], Any], what: str, attempts: int = ATTEMPTS) -> Any:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        for attempt in range(1, attempts + 1):
            try:
                return act()
            except GatedRepoError as error:
                raise ValueError(
                    f"{self.dataset} needs an account with access; log in with `hf auth login`"
                ) from error
            except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
                if not _offline(error):
                    reason = type(error).__name__
                    raise ValueError(
                        f"{what} of {self.dataset} is not on the hub ({reason}); check data.dataset"
                    ) from error
                failure: Exception = error
            # the libraries below report network errors with many exception types
            except Exception as error:
                failure = error
            if _offline(failure) or attempt == attempts:
                reason = " ".join(str(failure).split())[:200] or type(failure).__name__
                raise OSError(
                    f"cannot get {what} of {self.dataset} from the hub ({reason}); go online, set "
                    "NANOCHAT_HUB_DIR to "
                    f"a mirror with {self.dataset}/, or choose data=pydocs or data=local"
                ) from failure
            log.warning(
                "%s of %s: attempt %d failed (%s); trying again",
                what,
                self.dataset,
                attempt,
                failure,
            )
            time.sleep(2**attempt)
        raise AssertionError("unreachable")


def _offline(error: Exception) -> bool:
    """Whether a retry is pointless: the library is set to stay offline."""
    return "offline" in type(error).__name__.lower() or "HF_HUB_OFFLINE" in str(error)


def checksum(path: Path, like: str) -> str:
    """Hash of a file, of the same kind as `like`: sha256 (64 hex digits) or git blob (40, the hub's
    for small files)."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + file.read()).hexdigest()


class HubFiles(FileSource):
    """Documents in files of a hub data set: `train_files`, and `val_files` or a share of the
    training documents by hash.

    A file is one part whether it is already present or not, so that the manifest does not depend on
    downloads.
    """

    group_bytes = 1
    part_bytes = None

    def __init__(
        self,
        name: str,
        dataset: HubDataset,
        train_files: Sequence[str],
        val_files: Sequence[str] = (),
        **options: Any,
    ):
        super().__init__(name, **{**options, **({"val_by": "files"} if val_files else {})})
        self.dataset = dataset
        asked = list(dict.fromkeys([*train_files, *val_files]))
        self._known = {file.name: file for file in dataset.files(asked)}
        self._names = {"train": list(train_files), "val": list(val_files or train_files)}

    def files(self, split: str) -> list[SourceFile]:
        return [self._known[name] for name in self._names[split]]

    def locate(self, name: str) -> Path:
        return self.dataset.fetch(self._known[name])

    def present(self, name: str) -> Path | None:
        return self.dataset.present(self._known[name])

    def missing(self) -> list[SourceFile]:
        """The files still to be downloaded."""
        return [file for file in self._known.values() if not self.dataset.present(file)]

    def download_bytes(self) -> int:
        return sum(file.size for file in self.missing())

    def download(self, say: Callable[[str], None] = log.warning) -> None:
        """Download all missing files, several at a time, reporting progress with `say`."""
        for _ in self.dataset.fetch_all(self.missing(), say):
            pass

    def documents(self, split: str) -> Iterator[str]:
        """All documents of `split`. Missing files are downloaded several at a time, ahead of
        reading."""
        names = {file.name for file in self.files(split)}
        missing = [file for file in self.missing() if file.name in names]
        waiting = {file.name for file in missing}
        with contextlib.closing(self.dataset.fetch_all(missing, log.warning)) as fetched:
            for part in self.parts(split):
                while part.path in waiting:
                    waiting.remove(next(fetched).name)
                yield from self.read(part, split)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "dataset": self.dataset.dataset}

    def origin(self) -> dict[str, Any]:
        return {"dataset": self.dataset.dataset, "commit": self.dataset.commit}


class Shards(HubFiles):
    """A hub data set in nanochat's shard layout, where the characters of a shard are known before
    it is downloaded."""

    def head(self, max_chars: int | None) -> "Shards":
        count = max(LEAST_SHARDS, math.ceil((max_chars or 0) / CHARACTERS_PER_SHARD))
        train, val = (self.files(split) for split in ("train", "val"))
        if max_chars is None or count >= len(train):
            return self
        short = copy.copy(self)
        short.__dict__.pop("manifest_hash", None)
        short._known = {file.name: file for file in [*train[:count], *val]}
        short._names = {**self._names, "train": self._names["train"][:count]}
        short._parts = {}
        return short


def shards_needed(tokens: int, packing: str, there: int) -> int:
    """Number of training shards, of the `there` available, that a run of `tokens` tokens needs
    without repeats; at least LEAST_SHARDS.

    nanochat's d24 at ratio 8 needs about 150 and downloads 170 (facts sheet 4.1):

    >>> shards_needed(tokens=5_838_471_168, packing="best_fit", there=6542)
    172
    """
    if packing not in CROPPED:
        raise ValueError(
            f"packing={packing} is not known; choose "
            f"data.packing={' or data.packing='.join(CROPPED)}"
        )
    characters = tokens * CHARACTERS_PER_TOKEN / (1 - CROPPED[packing])
    return min(max(math.ceil(characters / CHARACTERS_PER_SHARD), LEAST_SHARDS), there)


def shard_names(count: int) -> list[str]:
    """Names of nanochat's shards (facts sheet 4.1)."""
    return [f"shard_{i:05d}.parquet" for i in range(count)]


def split_files(dataset: HubDataset, config: str | None, split: str) -> list[str]:
    """The data files of a split of a hub data set, as declared in the head of its README.md, else
    by their names.

    ValueError names the configs or splits that exist.
    """
    names = [file.name for file in dataset.files()]
    data = [
        name for name in names if suffix(name) and PurePosixPath(name).name.lower() != "readme.md"
    ]
    data = [name for name in data if not name.endswith(".md")]
    declared = _declared(dataset) if "README.md" in names else {}
    if declared:
        if config is None:
            if len(declared) > 1 and "default" not in declared:
                raise ValueError(
                    f"{dataset.dataset} has configs {', '.join(declared)}; set data.config=…"
                )
            config = "default" if "default" in declared else next(iter(declared))
        if config not in declared:
            raise ValueError(
                f"config={config} is not one of {dataset.dataset}: {', '.join(declared)}; set "
                "data.config=…"
            )
        splits = declared[config]
        if split not in splits:
            there = ", ".join(splits)
            raise ValueError(
                f"split={split} is not one of {dataset.dataset} {config}: {there}; set data.split=…"
            )
        found = [name for name in data if any(matches(name, pattern) for pattern in splits[split])]
    else:
        inside = [
            name for name in data if config is None or config in PurePosixPath(name).parts[:-1]
        ]
        if config is not None and not inside:
            folders = sorted({str(PurePosixPath(name).parent) for name in data})
            raise ValueError(
                f"config={config} is not a folder of {dataset.dataset}; its folders are "
                f"{', '.join(folders)}"
            )
        words = next((w for w in SPLIT_NAMES.values() if split in w), (split,))
        found = [name for name in inside if _words(name) & set(words)]
        if (
            not found
            and split == "train"
            and not any(_words(n) & set(SPLIT_NAMES["val"]) for n in inside)
        ):
            found = inside
    if not found:
        raise ValueError(
            f"{dataset.dataset} has no {split} file that can be read; it has "
            f"{', '.join(data[:5]) or 'none'}"
        )
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern of a README matches a file: a name, a folder with its content, or
    wildcards.

    >>> matches("data/train-00000.parquet", "data/train-*"), matches("a/b/c.json", "a/**")
    (True, True)
    >>> matches("b.json", "a.json")
    False
    """
    return fnmatch.fnmatchcase(
        name, pattern.removeprefix("./").replace("**/", "*").replace("**", "*")
    )


def _words(name: str) -> set[str]:
    return set(
        name.lower().replace("/", " ").replace("-", " ").replace("_", " ").replace(".", " ").split()
    )


def _declared(dataset: HubDataset) -> dict[str, dict[str, list[str]]]:
    """{config: {split: patterns}} of the card (the YAML head of README.md); empty if it declares no
    files."""
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(dataset.fetch(dataset.files(["README.md"])[0])) or {}
    except (yaml.YAMLError, ValueError):  # also what is no UTF-8
        return {}
    declared: dict[str, dict[str, list[str]]] = {}
    for config in card.get("configs") or []:
        entries = config.get("data_files", [])
        if isinstance(entries, dict):
            entries = [{"split": split, "path": path} for split, path in entries.items()]
        if isinstance(entries, str):
            entries = [entries]
        splits: dict[str, list[str]] = {}
        for entry in entries:
            where = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
            paths = where["path"] if isinstance(where["path"], list) else [where["path"]]
            folder = config.get("data_dir")
            splits.setdefault(where["split"], []).extend(
                f"{folder}/{p}" if folder else p for p in paths
            )
        if splits:
            declared[config["config_name"]] = splits
    return declared


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
