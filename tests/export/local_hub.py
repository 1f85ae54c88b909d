"""A hub in this process: the part of its API that the standard client uses to make a repository,
upload a folder and download it again. Repositories are dictionaries of files."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = ".safetensors"  # files that the hub keeps outside git


class Hub(ThreadingHTTPServer):
    """`repos`: name -> file -> content. `token` is what a request must bring to write."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}  # SHA-256 -> content
        self.token, self.full = token, False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running(token: str) -> Iterator[Hub]:
    hub = Hub(token)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def commit_of(files: dict[str, bytes]) -> str:
    return _sha1(b"".join(name.encode() + files[name] for name in sorted(files)))


def _entry(name: str, content: bytes) -> dict[str, Any]:
    found = {"type": "file", "path": name, "size": len(content), "oid": _sha1(content)}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 0}
    return found


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def answer(self, data: Any, code: int = 200, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def do_POST(self) -> None:
        hub, sent, path = self.server, self.body(), self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repos.setdefault(name, {})
            hub.visibility[name] = asked.get("visibility", "public")
            return self.answer({"url": f"{hub.url}/{name}", "id": name})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                for f in json.loads(sent)["files"]
            ]
            return self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(sent)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}}
            return self.answer({"objects": objects, "transfer": "basic"})
        if found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = hub.repos[found[1]]
            for line in map(json.loads, sent.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            sha = commit_of(files)
            url = f"{hub.url}/{found[1]}/commit/{sha}"
            return self.answer({"commitUrl": url, "commitOid": sha, "hookOutput": ""})
        return self.answer({"error": path}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        if self.server.full:
            return self.answer({"error": "no space"}, 400)
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        return self.answer({})

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        found = re.fullmatch(r"/api/models/(.+?)(/revision/[^/]+)?", path)
        if found and found[1] in hub.repos:
            files = hub.repos[found[1]]
            names = [{"rfilename": name} for name in files]
            return self.answer({"id": found[1], "sha": commit_of(files), "siblings": names})
        found = re.fullmatch(r"/api/models/(.+)/tree/[^/]+/?", path)
        if found and found[1] in hub.repos:
            return self.answer([_entry(*pair) for pair in hub.repos[found[1]].items()])
        found = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path)
        if found and (content := hub.repos.get(found[1], {}).get(found[3])) is not None:
            tags = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": found[2]}
            return self.answer(content, **tags)
        return self.answer({"error": path}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET
