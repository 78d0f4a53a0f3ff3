"""A small server that speaks the hub's protocol, on this machine alone, with the faults that a network has.

It knows what `huggingface_hub` asks: information on a repository at a revision, the list of its files, and files by
HEAD and GET: small ones with git's hash as ETag, large ones (LFS) by a redirect, with X-Linked-Etag and -Size. Ranges
are honoured, so that a download can go on.
"""

import hashlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet", ".ckpt")
"""Files that are large ones, whatever their size."""
TOKEN = "hf_of_the_tests"


@dataclass
class Repository:
    """Files of one repository at each of its commits, the newest last; gated: only TOKEN opens its files."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False


@dataclass
class Fault:
    """What goes wrong with paths that a pattern finds: an HTTP status, or "cut" after so many bytes; how often."""

    pattern: str
    status: int | None = None
    cut: int | None = None
    times: int = 10**6


class Hub:
    """The repositories, what was asked, and what is to go wrong."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[str] = []
        self.bytes_sent: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.faults: list[Fault] = []
        self.url = self.elsewhere = ""

    def add(self, kind: str, name: str, files: Mapping[str, bytes] | Path, *, gated: bool = False) -> str:
        """Publish a commit, which `main` is then; returns its hash. files: a folder, or contents by path."""
        if isinstance(files, Path):
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in sorted(files.rglob("*"))
                     if path.is_file()}  # fmt: skip
        found = self.repositories.setdefault((kind, name), Repository())
        told = repr([(path, hashlib.sha256(content).hexdigest()) for path, content in files.items()])
        commit = hashlib.sha1(told.encode()).hexdigest()
        found.files[commit], found.refs["main"], found.gated = dict(files), commit, gated
        return commit

    def fails(self, pattern: str, **how: int) -> Fault:
        """Make requests whose path the pattern finds fail."""
        self.faults.append(Fault(pattern, **how))
        return self.faults[-1]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(LARGE)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        fault = next((one for one in self.hub.faults if one.times > 0 and re.search(one.pattern, path)), None)
        if fault is not None and fault.status is not None:
            fault.times -= 1
            return self.error(fault.status, None)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+|[^/]+)(?:/revision/(.+))?", path):
            return self.info(*found.groups())
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+|[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            return self.file("datasets" if kind else "models", name, revision, file, fault)
        if found := re.fullmatch(r"/large/(\w+)", path):
            return self.large(found[1], fault)
        return self.error(404, None)

    def found(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and commit; None after an error was sent."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            return self.error(404, "RepoNotFound")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.files:
            return self.error(404, "RevisionNotFound")
        return repository, commit

    def info(self, kind: str, name: str, revision: str | None) -> None:
        found = self.found(kind, name, revision or "main")
        if found is None:
            return
        repository, commit = found
        siblings = []
        for path, content in repository.files[commit].items():
            one = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            if is_large(path):
                one["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(one)
        self.json({"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings,
                   "gated": "manual" if repository.gated else False, "downloads": 0, "likes": 0})  # fmt: skip

    def file(self, kind: str, name: str, revision: str, path: str, fault: Fault | None) -> None:
        found = self.found(kind, name, revision)
        if found is None:
            return
        repository, commit = found
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.error(403 if "Authorization" in self.headers else 401, "GatedRepo")
        content = repository.files[commit].get(path)
        if content is None:
            return self.error(404, "EntryNotFound", commit)
        if not is_large(path):
            return self.send(content, {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": commit}, fault)
        digest = hashlib.sha256(content).hexdigest()
        self.send_response(302)
        for key, value in {
            "X-Repo-Commit": commit, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub.elsewhere}/large/{digest}", "Content-Length": "0",
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()

    def large(self, digest: str, fault: Fault | None) -> None:
        for repository in self.hub.repositories.values():
            for files in repository.files.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == digest:
                        return self.send(content, {"ETag": f'"{digest}"'}, fault)
        self.error(404, None)

    def send(self, content: bytes, headers: Mapping[str, str], fault: Fault | None) -> None:
        start, end, asked = 0, len(content), self.headers.get("Range")
        if asked and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
            self.hub.ranges.append(asked)
            start, end = int(found[1]), int(found[2]) + 1 if found[2] else len(content)
        part = content[start:end]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        for key, value in (headers | {"Content-Length": str(len(part)), "Accept-Ranges": "bytes"}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        path = urlsplit(self.path).path
        if fault is not None and fault.cut is not None:
            fault.times -= 1
            part = part[: fault.cut]
        self.wfile.write(part)
        self.hub.bytes_sent[path] += len(part)
        if fault is not None and fault.cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def error(self, status: int, code: str | None, commit: str | None = None) -> None:
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Repo-Commit": commit, "Content-Length": "0"}.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers while the block runs, at `url`."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.elsewhere = f"http://localhost:{server.server_port}"  # the client follows redirects to its own host by itself
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
