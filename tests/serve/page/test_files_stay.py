"""No client of the page gets a file of the server, or another's conversation: every event x every
input x every way to name a file."""

import json
import os
import re
import secrets
import stat
import subprocess
import sys
import threading
import urllib.parse
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

gr = pytest.importorskip("gradio")
fastapi = pytest.importorskip("fastapi")
import httpx  # noqa: E402
import torch  # noqa: E402
from serving import served, server  # noqa: E402
from tiny_networks import TOKENIZER  # noqa: E402

from nanochat.gpt import GPT, GPTConfig  # noqa: E402
from nanochat.serve.access.limits import add_limits  # noqa: E402
from nanochat.serve.page import visitors  # noqa: E402
from nanochat.serve.page.mount import mount_page  # noqa: E402
from nanochat.serve.page.store import Conversation, Store  # noqa: E402

SECRET = f"secret-{secrets.token_hex(16)}"
META = {"meta": {"_type": "gradio.FileData"}}
KEY = "the-key"
Q, A = {"role": "user", "content": SECRET}, {"role": "assistant", "content": f"answer {SECRET}"}


def tiny(name):
    torch.manual_seed(0)
    return served(name, GPT.build(GPTConfig(256, TOKENIZER.vocab_size, 2, 2, 2, 32)).eval())


@contextmanager
def page(folder: Path, *, gate: bool = True, compare: bool = False, key: str | None = None):
    """(address, store, folder of the uploads) of a server as `nanochat.chat` builds it;
    `gate=False` leaves Gradio to its own checks."""
    store = Store(folder / "conversations.sqlite")
    store.put(Conversation([Q, A], owner="alice", id="of-alice", title=SECRET))

    def wrap(app, service):
        add_limits(app, 100_000, None, [], local=True)
        mount_page(app, service, store, compare=compare, password=key)
        if not gate:
            app.routes[-1].app = app.routes[-1].app.app

    with server(tiny("one"), tiny("two"), wrap=wrap, api_key=key) as (url, _):
        yield url, store, Path(visitors.private_folder().name)
    store.close()


def client(url: str, password: str | None = None) -> httpx.Client:
    new = httpx.Client(base_url=url, timeout=30)
    if password is not None:
        assert new.post("/login", data={"username": "me", "password": password}).status_code == 200
        new.cookies = {c.name: c.value for c in new.cookies.jar}  # Secure is for https
    new.get("/")
    return new


@pytest.fixture
def planted(tmp_path):
    """Ways to name a file that holds the secret, a link to it, the store, and what this machine
    serves on another port."""
    file, link = tmp_path / "planted.txt", tmp_path / "link.txt"
    file.write_text(SECRET)
    link.symlink_to(file)

    class Inside(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Inside.asked += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET.encode())

        def log_message(self, *_):
            pass

    inside = HTTPServer(("127.0.0.1", 0), Inside)
    threading.Thread(target=inside.serve_forever, daemon=True).start()
    uploads, store = visitors.private_folder().name, tmp_path / "conversations.sqlite"
    paths = [
        str(file),
        str(store),
        f"{store}-wal",
        str(link),
        urllib.parse.quote(str(file)),
        str(file).replace("/", "%2F"),
        f"{uploads}/../{os.path.relpath(file, Path(uploads).parent)}",
        f"{uploads}/x/../../../../../../..{file}",
        f"/proc/self/root{file}",
        f"/proc/self/cwd/{os.path.relpath(file)}",
        f"//{file}",
        f"file://{file}",
        f"http://127.0.0.1:{inside.server_port}/a.txt",
        f"http://localhost:{inside.server_port}/a.txt",
        os.path.relpath(file),
        str(tmp_path / "picture.svg"),
    ]
    (tmp_path / "picture.svg").write_text(f"<svg>{SECRET}</svg>")
    yield paths, Inside
    inside.shutdown()
    inside.server_close()


def shapes(path: str) -> list:
    """A file by that path, plainly and inside of what components take."""
    file = {"path": path, **META}
    return [
        file,
        [file],
        {"value": file},
        [[file]],
        {"id": "", "revision": 0, "x": [{"y": file}]},
        [{"role": "user", "content": file}],
        [{"role": "user", "content": {"file": file, "alt_text": None}}],
        {"text": "a", "files": [file]},
        {"path": path},
        {"path": path, "url": f"/gradio_api/file={path}", **META},
        {"path": path, "is_stream": True, **META},
    ]


def inputs_of(config: dict) -> list[tuple[int, int, list]]:
    """(event, number of an input, plain values for all inputs)."""
    components = {component["id"]: component for component in config["components"]}
    found = []
    for event in config["dependencies"]:
        plain = [components[id]["props"].get("value") for id in event["inputs"]]
        found += [(event["id"], number, plain) for number in range(len(plain))]
    return found


def join(visitor: httpx.Client, session: str, event: int, data: list, **more) -> httpx.Response:
    body = {
        "data": data,
        "fn_index": event,
        "session_hash": session,
        "event_data": {"index": [0, 0], "value": "x"},
        **more,
    }
    return visitor.post("/gradio_api/queue/join", json=body)


def told(visitor: httpx.Client, session: str, joined: list[str]) -> str:
    """All that the stream of a session says until the events ended."""
    if not joined:
        return ""
    with visitor.stream(
        "GET", "/gradio_api/queue/data", params={"session_hash": session}
    ) as stream:
        return "\n".join(stream.iter_lines())


def kept(folder: Path) -> list[str]:
    return [str(f) for f in folder.rglob("*") if f.is_file() and SECRET.encode() in f.read_bytes()]


NEWEST = [
    ("search", "change"),
    ("attach", "click"),
    ("turn_to", "click"),
    ("import", "upload"),
    ("box", "submit"),
]


def attack(
    url: str, visitor: httpx.Client, paths: list[str], uploads: Path, some: slice = slice(None)
) -> tuple[str, int]:
    """All that came back of every event x every input x every path and every shape, and how many
    were taken up."""
    said, taken = [], 0
    config = visitor.get("/config").json()
    events = inputs_of(config)
    assert {event for event, _, _ in events} == {
        each["id"] for each in config["dependencies"] if each["inputs"]
    }
    for element in (
        NEWEST if any(c["props"].get("elem_id") == "chat" for c in config["components"]) else ()
    ):
        assert event_of(config, *element)["id"] in {event for event, _, _ in events}
    for event, number, plain in events:
        session = secrets.token_hex(8)
        joined = []
        for shape in [*shapes(paths[0])[some], *(shapes(path)[0] for path in paths[1:])]:
            answer = join(visitor, session, event, [*plain[:number], shape, *plain[number + 1 :]])
            said.append(answer.text)
            if answer.status_code == 200:
                joined.append(answer.json()["event_id"])
        taken += len(joined)
        said.append(told(visitor, session, joined))
    text = "\n".join(said)
    for file in {f"/gradio_api/file={path}" for path in paths} | set(
        re.findall(r"/gradio_api/file=[^\"\\ ]+", text)
    ):
        for spelled in (
            file,
            file.replace("/gradio_api/file=", "/gradio_api/file/"),
            f"/gradio_api/proxy={file}",
        ):
            text += visitor.get(spelled).text
    for folder in uploads.rglob("*"):
        text += visitor.get(f"/gradio_api/file={folder}").text
    return text, taken


WHO = {"anonymous": (None, None), "logged in": (KEY, KEY), "not logged in": (KEY, None)}


@pytest.mark.slow
@pytest.mark.parametrize(("who", "compare"), [(who, False) for who in WHO] + [("anonymous", True)])
def test_no_event_and_no_input_gives_a_file_away(tmp_path, planted, who, compare):
    (key, password), (paths, inside) = WHO[who], planted
    with (
        page(tmp_path, key=key, compare=compare) as (url, store, uploads),
        closing(client(url, KEY if key else None)) as owner,
    ):
        config = owner.get("/config").text
        with closing(client(url, password)) as visitor:
            if who == "not logged in":
                assert visitor.get("/config").status_code == 401
                real = visitor.get
                visitor.get = lambda path, **more: (
                    httpx.Response(200, text=config) if path == "/config" else real(path, **more)
                )
            text, taken = attack(url, visitor, paths, uploads)
        assert SECRET not in text and kept(uploads) == [] and inside.asked == 0 and taken == 0
        assert store.get("of-alice").messages == [Q, A]  # nor is it changed
        assert all(Path(path).exists() for path in paths[:1])  # an import deletes what it has read


@pytest.mark.slow
def test_gradio_itself_gives_no_file_away_without_the_gate_in_front(tmp_path, planted):
    paths, inside = planted
    with page(tmp_path, gate=False) as (url, _, uploads), closing(client(url)) as visitor:
        text, taken = attack(
            url,
            visitor,
            [paths[0], paths[1], paths[6], paths[8], paths[12], paths[15]],
            uploads,
            slice(0, 10, 4),
        )
        assert taken > 100  # the events ran
        assert SECRET not in text and kept(uploads) == [] and inside.asked == 0
        assert Path(paths[0]).exists()


@pytest.mark.slow
def test_the_attack_finds_the_hole_that_was_there(tmp_path, planted, monkeypatch):
    """Gradio as it is mounted: the control of the two tests before."""
    build = visitors.Sealed.__init__
    monkeypatch.setattr(
        visitors.Sealed,
        "__init__",
        lambda self, *a, **k: (build(self, *a, **k), setattr(self, "has_launched", False))[0],
    )
    monkeypatch.delattr(visitors.Sealed, "preprocess_data")
    monkeypatch.delattr(visitors.Sealed, "postprocess_data")
    with page(tmp_path, gate=False) as (url, _, uploads), closing(client(url)) as visitor:
        text, _ = attack(url, visitor, planted[0][:1], uploads, slice(0, 1))
        assert SECRET in text and kept(uploads) != []
        for file in kept(uploads):
            Path(file).unlink()


def upload(visitor, name="mine.json", content=b"{}"):
    return visitor.post("/gradio_api/upload", files={"files": (name, content)})


def event_of(config: dict, element: str, target: str) -> dict:
    ids = [
        component["id"]
        for component in config["components"]
        if component["props"].get("elem_id") == element
    ]
    return next(
        event
        for event in config["dependencies"]
        if event["backend_fn"] and [ids[0], target] in event["targets"]
    )


def test_what_one_visitor_has_another_cannot_reach_by_any_route(tmp_path):
    with (
        page(tmp_path) as (url, store, _),
        closing(client(url)) as alice,
        closing(client(url)) as mallory,
        httpx.Client(base_url=url) as nobody,
    ):
        config = alice.get("/config").json()
        (path,) = upload(alice, content=SECRET.encode()).json()
        session = "of-alice"
        export_all = event_of(config, "export_all", "click")
        joined = join(alice, session, export_all["id"], ["alice"])
        event = joined.json()["event_id"]
        assert joined.status_code == 200
        file = {"path": path, **META}
        send = event_of(config, "box", "submit")
        for other in (mallory, nobody):
            tries = [
                other.get(f"/gradio_api/file={path}"),
                other.get(f"/gradio_api/file%3D{urllib.parse.quote(path)}"),
                other.get("/gradio_api/queue/data", params={"session_hash": session}),
                other.get(
                    "/gradio_api/queue/data",
                    params=[("session_hash", "mine"), ("session_hash", session)],
                ),
                other.get(f"/gradio_api/heartbeat/{session}"),
                other.get(f"/gradio_api/call/export_all/{event}"),
                other.get("/gradio_api/deep_link", params={"session_hash": session}),
                other.get(f"/gradio_api/stream/{session}/{event}/1/playlist.m3u8"),
                join(other, session, export_all["id"], ["alice"]),
                join(other, "mine", send["id"], [file] * len(send["inputs"])),
                other.post(
                    "/gradio_api/run/export_all",
                    json={"data": ["alice"], "session_hash": session, "fn_index": export_all["id"]},
                ),
                other.post("/gradio_api/call/export_all", json={"data": ["alice"]}),
                other.post(
                    "/gradio_api/cancel",
                    json={"session_hash": session, "fn_index": 0, "event_id": event},
                ),
                other.post(
                    "/gradio_api/cancel",
                    json={"session_hash": "mine", "fn_index": 0, "event_id": event},
                ),
                other.post(
                    "/gradio_api/component_server",
                    json={
                        "data": path,
                        "component_id": 1,
                        "session_hash": session,
                        "fn_name": "ls",
                    },
                ),
                other.post(f"/gradio_api/stream/{event}", json={"data": [path]}),
                other.post("/gradio_api/process_recording", files={"files": ("a.webm", b"x")}),
                *(
                    other.get(f"/{route}")
                    for route in (
                        "gradio_api/info/",
                        "gradio_api/openapi.json",
                        "gradio_api/token",
                        "gradio_api/runs",
                        "monitoring",
                        "monitoring/summary",
                        "gradio_api/queue/status",
                        "gradio_api/profiling/traces",
                        "gradio_api/dev/reload",
                        "gradio_api/custom_component/1/a/b/c.py",
                        f"gradio_api/file=http://127.0.0.1:{httpx.URL(url).port}/health",
                        f"gradio_api/proxy={url}/health",
                    )
                ),
                *(
                    other.post(f"/gradio_api/{route}", json={"prompt": "x"})
                    for route in ("vibe-edit", "vibe-code", "undo-vibe-edit")
                ),
            ]
            for answer in tries:
                assert answer.status_code in (400, 403, 404, 405), (answer.url, answer.status_code)
                assert SECRET not in answer.text
        assert SECRET in told(alice, session, [event])  # which is still there, and only hers
        assert alice.get(f"/gradio_api/file={path}").text == SECRET
        for owner in ("", "nobody", None, "bob", "*", "%", ["alice"], {"$ne": ""}, True):
            joined = join(mallory, "mine", export_all["id"], [owner])
            assert joined.status_code == 200 and SECRET not in told(
                mallory, "mine", [joined.json()["event_id"]]
            )
        assert store.get("of-alice").messages == [Q, A]


def test_an_answer_is_stopped_by_its_owner_alone(tmp_path):
    from nanochat.inference.sampling import Sampling
    from nanochat.serve.page.page import Page

    class Turn:
        stopped = False

        def stop(self):
            self.stopped = True

    store = Store(None)
    kept = store.put(Conversation([Q], owner="alice"))
    shown = Page(None, store, Sampling(), private=True)
    turn = shown.writing[kept.id] = Turn()
    for other in ("", "mallory", None):
        shown.stop({"id": kept.id, "revision": 1}, other)
        assert not turn.stopped
    shown.stop({"id": kept.id, "revision": 1}, "alice")
    assert turn.stopped


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0, 0o022])
def test_other_users_of_the_machine_read_nothing(tmp_path, umask):
    """Neither the store with what SQLite keeps beside it, nor uploads, nor what was made open by
    another program."""
    code = """if True:
        import os, sys, stat
        os.umask(int(sys.argv[1]))
        from pathlib import Path
        from nanochat.serve.page.store import Store, Conversation
        from nanochat.serve.page import visitors
        old = Path(sys.argv[2]) / "old.sqlite"
        for name in (old, Path(f"{old}-wal")):
            name.touch(0o666)
        for path in (Path(sys.argv[2]) / "new" / "c.sqlite", old):
            store = Store(path)
            store.put(Conversation([{"role": "user", "content": "x"}]))
            for file in path.parent.glob(f"{path.name}*"):
                print(oct(stat.S_IMODE(file.stat().st_mode)))
        for folder in (Path(sys.argv[2]) / "new", visitors.private_folder().name):
            print(oct(stat.S_IMODE(os.stat(folder).st_mode)))
    """
    found = subprocess.run(
        [sys.executable, "-c", code, str(umask), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["0o600"] * 6 + ["0o700", "0o700"]


def test_uploads_lie_where_nobody_else_can_look(tmp_path):
    with page(tmp_path) as (url, _, uploads), closing(client(url)) as visitor:
        (path,) = upload(visitor, content=b"mine").json()
        assert (
            Path(path).is_relative_to(uploads.resolve())
            and stat.S_IMODE(uploads.stat().st_mode) == 0o700
        )
        assert json.loads(visitor.get("/config").text)
