"""The store of conversations: what survives, who sees what, and what a file must be."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from nanochat.serve.page.store import TITLE_LENGTH, Changed, Conversation, Store, default_path
from nanochat.serve.page.transfer import export, load

CALL = [
    {"type": "text", "text": "34+57="},
    {"type": "python", "text": "34+57"},
    {"type": "python_output", "text": "91"},
    {"type": "text", "text": "91."},
]
TALK = [
    {"role": "user", "content": "What is 34 + 57?"},
    {"role": "assistant", "content": CALL, "made": {"model": "d4", "tokens": 20}},
]
SETTINGS = {
    "system": "Be kind.",
    "random_seed": False,
    "sampling": {"temperature": 0.5, "seed": 7, "stop": ["\n"]},
}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "chat" / "c.sqlite")
    yield store
    store.close()


def said(text: str, **rest) -> Conversation:
    return Conversation([{"role": "user", "content": text}], **rest)


def test_a_second_store_of_the_file_finds_what_the_first_put(store):
    put = store.put(Conversation(TALK, SETTINGS, "d4@10"))
    other = Store(store.path)
    assert (
        other.get(put.id) == put
        and put.messages == TALK
        and put.settings == SETTINGS
        and put.revision == 1
    )
    assert other.entries() == [(put.id, "What is 34 + 57?", put.updated)]
    assert other.get("another") is None


def test_nothing_is_readable_for_other_users_of_the_machine(store):
    store.put(said("secret"))
    for file in store.path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(None)
    assert store.get(store.put(said("hello")).id).messages == said("hello").messages
    assert not list(tmp_path.iterdir())


def test_the_default_file_is_in_the_base_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert default_path() == tmp_path / "chat" / "conversations.sqlite"


def test_an_older_revision_overwrites_nothing(store):
    first = store.put(said("one"))
    second = store.put(replace(first, messages=TALK))
    with pytest.raises(Changed, match="changed elsewhere"):
        store.put(
            replace(first, messages=[*first.messages, {"role": "assistant", "content": "late"}])
        )
    assert store.get(first.id) == second
    store.delete(first.id)
    with pytest.raises(Changed, match="deleted elsewhere"):
        store.put(second)


def test_an_owner_sees_and_changes_only_what_is_theirs(store):
    mine, theirs = store.put(said("mine", owner="me")), store.put(said("theirs", owner="you"))
    assert [entry.id for entry in store.entries("me")] == [mine.id]
    assert store.get(theirs.id, "me") is None
    store.delete(theirs.id, "me")
    store.set(theirs.id, "me", title="stolen")
    assert store.get(theirs.id, "you") == theirs
    assert {entry.id for entry in store.entries(None)} == {mine.id, theirs.id}
    assert "theirs" not in export(store, None, "me") and "theirs" not in export(
        store, theirs.id, "me"
    )


def test_title_and_settings_change_beside_the_messages(store):
    put = store.put(said("x" * 100))
    assert put.title == "x" * (TITLE_LENGTH - 1) + "…"
    store.set(put.id, title="  A  name ", settings=SETTINGS)
    assert store.get(put.id) == replace(put, title="A name", settings=SETTINGS)
    assert store.put(put).revision == 2  # and they are no new revision
    with pytest.raises(ValueError, match="type a name"):
        store.set(put.id, title=" \n")


def test_what_is_deleted_is_gone_from_the_file(store):
    put = store.put(said("a very secret word: xylophone"))
    store.delete(put.id)
    store.close()
    assert b"xylophone" not in b"".join(file.read_bytes() for file in store.path.parent.iterdir())


def test_many_threads_write_without_losing_anything(store):
    def write(name: str) -> None:
        c = Conversation([], owner=name)
        for n in range(20):
            c = store.put(
                replace(
                    c,
                    messages=[
                        *c.messages,
                        {"role": ("user", "assistant")[n % 2], "content": str(n)},
                    ],
                )
            )

    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.entries()) == 8
    for entry in store.entries():
        c = store.get(entry.id)
        assert [message["content"] for message in c.messages] == [
            str(n) for n in range(20)
        ] and c.revision == 20


WRITER = """
import sys
from dataclasses import replace
from nanochat.serve.page.store import Conversation, Store
store, name, turns = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
c = store.put(Conversation([], title=name))
for n in range(turns):
    message = {"role": ("user", "assistant")[n % 2], "content": f"{n} " + "word " * 2000}
    c = store.put(replace(c, messages=[*c.messages, message]))
    print(n, flush=True)
"""


def writer(store: Store, name: str, turns: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.path), name, str(turns)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_of_two_processes_that_write_one_is_killed_and_nothing_that_was_put_is_lost(store):
    killed, other = writer(store, "killed", 100_000), writer(store, "other", 50)
    for line in killed.stdout:
        if int(line) == 25:
            break
    os.kill(killed.pid, signal.SIGKILL)  # in the middle of the next ones
    rest = killed.communicate()[0].split()
    assert other.wait(60) == 0
    last = int(rest[-1]) if rest else 25
    talks = {entry.title: store.get(entry.id).messages for entry in Store(store.path).entries()}
    assert len(talks["other"]) == 50
    # what was put, or one more that was not told
    assert len(talks["killed"]) in (last + 1, last + 2)
    for messages in talks.values():
        assert [message["content"].split()[0] for message in messages] == [
            str(n) for n in range(len(messages))
        ]
    assert sqlite3.connect(store.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "c.sqlite").write_text("hello " * 1000)
    with pytest.raises(ValueError, match=r"c\.sqlite cannot be used .*; name another file"):
        Store(tmp_path / "c.sqlite")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="name another file"):
        Store(tmp_path / "file" / "c.sqlite")


def test_a_store_of_a_later_version_is_refused(store):
    store._db.execute("PRAGMA user_version=9")
    with pytest.raises(ValueError, match="later nanochat"):
        Store(store.path)


def test_export_and_import_give_the_same_conversations(store, tmp_path):
    for c in (
        Conversation(TALK, SETTINGS, "d4@10", "A title"),
        said("hello"),
        Conversation(title="empty"),
    ):
        store.put(c)
    other = Store(tmp_path / "other.sqlite")
    loaded = load(other, export(store).encode(), owner="me")

    def content(c):
        return c.title, c.model, c.settings, c.messages

    assert [content(c) for c in loaded] == [
        content(store.get(entry.id)) for entry in store.entries()
    ]
    assert len(other.entries("me")) == 3 and not {c.id for c in loaded} & {
        entry.id for entry in store.entries()
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda talk: talk,
        lambda talk: {"messages": talk},
        lambda talk: [{"messages": talk}],
        lambda talk: [talk],
    ],
)
def test_messages_of_anyone_can_be_imported(store, wrap):
    talk = [{"role": "system", "content": "Be kind."}, *TALK]
    (c,) = load(store, json.dumps(wrap(talk)))
    assert (
        c.messages == TALK
        and c.settings == {"system": "Be kind."}
        and c.title == "What is 34 + 57?"
    )


def changed(**values) -> str:
    return json.dumps({"conversations": [{"messages": TALK}, {"messages": TALK} | values]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        ('[{"role": "user", "content": "\\ud800"}]', "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "no conversations"),
        ("3", "no conversations"),
        ('{"nanochat_conversations": 7}', "version 7"),
        ("[1]", "conversation 1 of 1: it has no list of messages"),
        (
            changed(messages=[{"role": "assistant", "content": "a"}]),
            r"conversation 2 of 2: message 0 is of assistant",
        ),
        (changed(messages=[{"role": "user", "content": [1]}]), "its content is not text"),
        (
            changed(
                messages=[TALK[0], {"role": "assistant", "content": [{"type": ["x"], "text": "a"}]}]
            ),
            "part of type",
        ),
        (changed(settings={"colour": 3}), "colour=3"),
        (changed(settings={"sampling": {"temperature": -1}}), "temperature=-1 must be"),
        (changed(settings={"sampling": {"warmth": 1}}), "'warmth'"),
        (changed(title=3), "must be texts"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_and_adds_nothing(store, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load(store, text)
    assert "\n" not in str(error.value)
    assert store.entries() == []
