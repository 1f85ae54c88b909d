"""Conversations as token ids on disk: each task is rendered once, by several processes, and
memory-mapped.

There is one folder per task and tokenizer, named by a hash of everything that determines its
content: `ids.bin`, `mask.bin` (uint8, 1 where the assistant writes), `offsets.npy`, `numbers.npy`
(the number of each conversation in its task), and `meta.json` with the conversations that break the
rules and the sha256 of the files. The folder gets its name only when it is complete, and is
rendered again if a file has changed.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanochat.checkpoint import hashes
from nanochat.checkpoint.atomic import write_atomic
from nanochat.datamodules.journal import digest, file_sha256, read_sha256
from nanochat.datamodules.shards import cores
from nanochat.runtime.signals import work_for_parent
from nanochat.tasks.task import Task
from nanochat.tokenizer.conversations import BadConversation, is_empty, is_trained, render
from nanochat.tokenizer.tokenizer import Tokenizer

FORMAT = 2
CHUNK = 512  # guess: conversations that a process renders at a time
BLOCK = 100_000  # guess: conversations counted at a time
MOST_PROCESSES = 16  # guess: one process writes what they render
FEW = 4_000  # guess: so few are rendered before processes have started
# what is counted; BAD is followed by the reason
EMPTY, UNTRAINED, BAD = "empty", "not trained", "bad: "
SHOWN = 20  # guess: bad conversations named in a record

log = logging.getLogger("nanochat.data")

Bad = tuple[int, str]


@dataclass(frozen=True)
class Rendered:
    """The valid conversations of one task.

    ids (N,), mask (N,) uint8, offsets (n + 1,), numbers (n,). `bad` holds (number, reason) of
    conversations that break the rules.
    """

    place: Path
    name: str
    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray
    bad: list[Bad]
    bad_count: int
    counts: dict[
        str, int
        # conversations with an `empty` message, with one `not trained`, and of bad ones by
        # reason
    ]

    def __len__(self) -> int:
        return len(self.numbers)

    def __reduce__(self) -> Any:
        return _open, (self.place, self.name)  # a loader process maps the files itself

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def supervised(self, limit: int | None = None) -> np.ndarray:
        """Number of tokens the assistant writes among the first `limit` of each conversation, (n,)
        int64."""
        stops = (
            self.offsets[1:]
            if limit is None
            else np.minimum(self.offsets[1:], self.offsets[:-1] + limit)
        )
        counts = np.empty(len(self), np.int64)
        for first in range(0, len(self), BLOCK):  # block by block: the sum turns bytes into int64
            last = min(first + BLOCK, len(self))
            base, end = int(self.offsets[first]), int(self.offsets[last])
            running = np.concatenate([[0], np.cumsum(self.mask[base:end], dtype=np.int32)])
            counts[first:last] = (
                running[stops[first:last] - base] - running[self.offsets[first:last] - base]
            )
        return counts


def render_task(
    task: Task,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    on_bad: str = "error",
    processes: int | None = None,
) -> Rendered:
    """The rendered conversations of `task`, from the folder if it exists.

    `on_bad`: error raises ValueError for the first conversation that breaks the rules, naming task,
    number and reason; skip leaves such conversations out and counts them.
    """
    key = digest({"task": task.settings(), "tokenizer": tokenizer.hash, "format": FORMAT})
    place = folder / f"{task.name.replace('/', '--')}-{key}"
    if not _whole(place):
        _write(task, tokenizer, place, on_bad, processes)
    found = _open(place, task.name)
    if found.bad and on_bad == "error":
        raise _complaint(task, *found.bad[0])
    return found


def _whole(place: Path) -> bool:
    """Whether the folder is complete and its files are as written; folders from before hashes were
    stored are accepted."""
    if not (place / "meta.json").is_file():
        return False
    try:
        sha256 = json.loads((place / "meta.json").read_text(encoding="utf-8")).get("sha256", {})
        if all(
            not hashes.wanted() or file_sha256(place / name) == expected
            for name, expected in sha256.items()
        ):
            return True
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        pass
    log.warning("%s is damaged or was changed (sha256); rendering it again", place)
    return False


def _open(place: Path, name: str) -> Rendered:
    meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    return Rendered(
        place,
        name,
        _map(place / "ids.bin", np.dtype(meta["dtype"])),
        _map(place / "mask.bin", np.dtype(np.uint8)),
        np.load(place / "offsets.npy"),
        np.load(place / "numbers.npy"),
        [(number, reason) for number, reason in meta["bad"]],
        meta["bad_count"],
        meta["counts"],
    )


def _complaint(task: Task, number: int, reason: str) -> ValueError:
    return ValueError(
        f"conversation {number} of {task.name}: {reason}; correct it, or skip such conversations "
        "with data.on_bad=skip"
    )


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _write(
    task: Task, tokenizer: Tokenizer, place: Path, on_bad: str, processes: int | None
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)

    def write(folder: Path) -> None:
        lengths: list[int] = []
        numbers: list[int] = []
        bad: list[Bad] = []
        bad_count = 0
        counts: Counter[str] = Counter()
        with (
            (folder / "ids.bin").open("wb") as ids_file,
            (folder / "mask.bin").open("wb") as mask_file,
        ):
            for chunk in _chunks(task, tokenizer, dtype, processes):
                if chunk.bad and on_bad == "error":
                    raise _complaint(task, *chunk.bad[0])
                bad_count += len(chunk.bad)
                counts += chunk.counts
                bad += chunk.bad[: max(SHOWN - len(bad), 0)]
                ids_file.write(chunk.ids)
                mask_file.write(chunk.mask)
                lengths += chunk.lengths
                numbers += chunk.numbers
        np.save(
            folder / "offsets.npy",
            np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))]).astype(np.int64),
        )
        np.save(folder / "numbers.npy", np.array(numbers, np.int64))
        meta = {
            "task": task.settings(),
            "tokenizer": tokenizer.hash,
            "dtype": dtype.name,
            "bad": bad,
            "bad_count": bad_count,
            "counts": counts,
            "sha256": {path.name: read_sha256(path) for path in sorted(folder.iterdir())},
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1, default=str), encoding="utf-8")

    write_atomic(place, write)


class Chunk(NamedTuple):
    """Rendered conversations as bytes to be written, and (number, reason) of those that break the
    rules."""

    ids: bytes
    mask: bytes
    lengths: list[int]
    numbers: list[int]
    bad: list[Bad]
    counts: Counter[str]


def _chunks(
    task: Task, tokenizer: Tokenizer, dtype: np.dtype[Any], processes: int | None
) -> Iterator[Chunk]:
    total = len(task)
    spans = [range(begin, min(begin + CHUNK, total)) for begin in range(0, total, CHUNK)]
    count = (0 if total < FEW else min(cores(), MOST_PROCESSES)) if processes is None else processes
    if count < 2 or len(spans) < 2:
        for span in spans:
            yield _render(task, tokenizer, dtype, span)
        return
    log.info("rendering %s conversations of %s, %d processes", f"{total:,}", task.name, count)
    held = (task, tokenizer, dtype)
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_hold, initargs=held
    ) as pool:
        yield from pool.map(_render_held, spans)


_held: dict[str, Any] = {}  # state of a rendering process


def _hold(task: Task, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
    work_for_parent()
    _held.update(task=task, tokenizer=tokenizer, dtype=dtype)


def _render_held(span: range) -> Chunk:
    return _render(_held["task"], _held["tokenizer"], _held["dtype"], span)


def _render(task: Task, tokenizer: Tokenizer, dtype: np.dtype[Any], span: range) -> Chunk:
    all_ids: list[int] = []
    all_mask: list[int] = []
    lengths, numbers, bad = [], [], []
    counts: Counter[str] = Counter()
    for number in span:
        try:
            conversation = task[number]
            ids, mask = render(tokenizer, conversation)
        except BadConversation as error:
            bad.append((number, str(error)))
            counts[BAD + re.sub(r"message \d+", "a message", error.reason.partition(";")[0])] += 1
            continue
        messages = conversation["messages"]
        counts[EMPTY] += any(is_empty(message) for message in messages)
        counts[UNTRAINED] += any(m["role"] == "assistant" and not is_trained(m) for m in messages)
        all_ids += ids
        all_mask += mask
        lengths.append(len(ids))
        numbers.append(number)
    return Chunk(np.array(all_ids, dtype).tobytes(), bytes(all_mask), lengths, numbers, bad, counts)
