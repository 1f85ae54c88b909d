"""Conversations in one SQLite file, which survives the server however it ends.

A conversation is stored whole under its id, its messages in the form of
`tokenizer/conversations.py`. A message of the assistant also has `made`, which says by what model
and how; one of the user may have `branches` (`branches.py`). Every change is one transaction,
written to the log before the call returns: a killed process loses nothing that was put; a power
failure may lose the last moments. Revisions detect conflicts: putting an older revision raises
Changed, and nothing is overwritten.
"""

import json
import os
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from nanochat.runtime.paths import base_dir
from nanochat.serve.page.branches import texts

VERSION = 1  # of the table and of what is exported
TITLE_LENGTH = 60  # guess: characters; a line of the list
WAIT_SECONDS = 30  # guess: for another process that is writing
TABLE = """
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, model TEXT,
    messages TEXT NOT NULL, settings TEXT NOT NULL,
    created REAL NOT NULL, updated REAL NOT NULL, revision INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_owner ON conversations (owner, updated);
"""


def new_id() -> str:
    return secrets.token_urlsafe(12)  # it stands in an address: not to be guessed


class Changed(ValueError):
    """The conversation in the store is not the one that was read before."""


@dataclass(frozen=True)
class Conversation:
    """`owner` may see it, everybody for ""; `revision` counts how often it was put, 0 for a new
    one."""

    # without a system message, which is a setting
    messages: list[dict[str, Any]] = field(default_factory=list)
    # {"system": text, "sampling": {…}, "random_seed": bool}
    settings: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    title: str = ""  # "": from the first message
    owner: str = ""
    id: str = field(default_factory=new_id)
    created: float = 0.0  # seconds since 1970
    updated: float = 0.0
    revision: int = 0


class Listing(NamedTuple):
    """A line of the list of conversations."""

    id: str
    title: str
    updated: float


class Store:
    """Opens or creates `path`, readable by its user only; None keeps everything in memory.

    Safe from any thread and several processes. `owner` in its methods leaves out what others own;
    None leaves out nothing.
    """

    def __init__(self, path: Path | str | None) -> None:
        self.path = None if path is None else Path(path).expanduser().absolute()
        self._lock = threading.RLock()
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
                for file in (self.path, *(Path(f"{self.path}{kind}") for kind in ("-wal", "-shm"))):
                    # one made elsewhere may be open to others
                    if file.exists() and file.stat().st_mode & 0o077:
                        file.chmod(0o600)
            self._db = sqlite3.connect(
                self.path or ":memory:",
                timeout=WAIT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA secure_delete=ON")  # what is deleted is gone from the file too
            with self._writing() as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version > VERSION:
                    raise ValueError(
                        f"store={self.path} was written by a later nanochat (version {version}, "
                        f"this one reads {VERSION}); name another file"
                    )
                for statement in filter(str.strip, TABLE.split(";")):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(
                f"store={self.path} cannot be used ({error}); name another file, or null to keep "
                "nothing"
            ) from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def entries(self, owner: str | None = None) -> list[Listing]:
        """The last changed first."""
        where, values = _owned(owner)
        rows = self._all(
            f"SELECT id, title, updated FROM conversations WHERE {where} ORDER BY updated DESC",
            values,
        )
        return [Listing(*row) for row in rows]

    def search(self, text: str, owner: str | None = None) -> list[Listing]:
        """The entries that have every word of `text` in their title or in what was written, on any
        branch, in any case.

        Reads them all; how long that takes, and why there is no index:
        experiments/chat_page/README.md.
        """
        words = _folded(text).split()
        return [entry for entry in self.entries(owner) if self._has(entry, words)]

    def _has(self, entry: Listing, words: list[str]) -> bool:
        # one at a time: writers wait for no more
        rows = self._all("SELECT messages FROM conversations WHERE id = ?", [entry.id])
        whole = _folded(
            "\n".join([entry.title, *(text for row in rows for text in texts(json.loads(row[0])))])
        )
        return all(word in whole for word in words)

    def get(self, id: str, owner: str | None = None) -> Conversation | None:
        where, values = _owned(owner)
        rows = self._all(
            f"SELECT {COLUMNS} FROM conversations WHERE id = ? AND {where}", [id, *values]
        )
        return _from_row(rows[0]) if rows else None

    def put(self, conversation: Conversation) -> Conversation:
        """What is kept from now on. Changed if the store has another revision than the one this
        came from, or none any more."""
        now = time.time()
        new = replace(
            conversation,
            title=shortened(conversation.title) or title_of(conversation.messages),
            created=conversation.created or now,
            updated=now,
            revision=conversation.revision + 1,
        )
        with self._writing() as db:
            found = db.execute(
                "SELECT revision FROM conversations WHERE id = ?", [new.id]
            ).fetchone()
            if (found[0] if found else 0) != conversation.revision:
                raise Changed(f"{new.title!r} was {'changed' if found else 'deleted'} elsewhere")
            marks = ", ".join("?" for _ in fields(Conversation))
            db.execute(
                f"INSERT OR REPLACE INTO conversations ({COLUMNS}) VALUES ({marks})", _to_row(new)
            )
        return new

    def set(self, id: str, owner: str | None = None, **values: Any) -> None:
        """Change `title`, `model` or `settings` without a new revision; nothing if there is no such
        conversation."""
        assert set(values) <= {"title", "model", "settings"}
        if "title" in values and not (title := shortened(values["title"])):
            raise ValueError(
                f"title={values['title']!r} is empty; type a name for the conversation"
            )
        elif "title" in values:
            values["title"] = title
        if "settings" in values:
            values["settings"] = _json(values["settings"])
        where, owned = _owned(owner)
        with self._writing() as db:
            db.execute(
                (
                    f"UPDATE conversations SET {', '.join(f'{key} = ?' for key in values)} WHERE "
                    f"id = ? AND {where}"
                ),
                [*values.values(), id, *owned],
            )

    def delete(self, id: str, owner: str | None = None) -> None:
        where, values = _owned(owner)
        with self._writing() as db:
            db.execute(f"DELETE FROM conversations WHERE id = ? AND {where}", [id, *values])

    def put_all(self, conversations: list[Conversation]) -> list[Conversation]:
        """All or none."""
        with self._writing():
            return [self.put(conversation) for conversation in conversations]

    def _all(self, query: str, values: list[Any]) -> list[tuple]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what is done inside; inside another one, a part of that."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it already
                    self._db.execute("ROLLBACK")
                raise


def default_path() -> Path:
    return base_dir() / "chat" / "conversations.sqlite"


def title_of(messages: list[dict[str, Any]]) -> str:
    """The beginning of the first question."""
    first = next((message["content"] for message in messages if message["role"] == "user"), "")
    return shortened(first) or "New conversation"


def shortened(text: str) -> str:
    """One line of at most TITLE_LENGTH characters."""
    line = " ".join(text.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"


def _folded(text: str) -> str:
    """Equal for what differs only in case, or in how an accent or a wide letter is encoded."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


COLUMNS = ", ".join(f.name for f in fields(Conversation))


def _to_row(conversation: Conversation) -> list[Any]:
    values = (getattr(conversation, f.name) for f in fields(Conversation))
    return [_json(value) if isinstance(value, list | dict) else value for value in values]


def _from_row(row: tuple) -> Conversation:
    messages, settings, *rest = row
    return Conversation(json.loads(messages), json.loads(settings), *rest)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _owned(owner: str | None) -> tuple[str, list[str]]:
    return ("1", []) if owner is None else ("owner = ?", [owner])
