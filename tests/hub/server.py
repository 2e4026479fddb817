"""A Hugging Face hub on 127.0.0.1: what huggingface_hub, transformers, peft and datasets read of one.

Repositories are dictionaries of bytes.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

# Accepted with every right; accepted, but without access to gated and private repositories. Any other is refused (401).
TOKEN, OTHER_TOKEN = "hf_ofTheLoopbackHub", "hf_ofSomebodyElse"
USER = "me"


@dataclass
class Repository:
    """`revisions` maps branches and tags to commits, `commits` a commit to its files. A proxy refuses weights in the
    hub's place."""

    kind: str
    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    behind_proxy: bool = False

    def commit(self, files: dict[str, bytes], *revisions: str) -> str:
        """Add a commit with these files, which `revisions` (main where none is named) point to from now on."""
        parts = [self.kind, self.name, str(len(self.commits)), *(f"{n} {_sha(b)}" for n, b in sorted(files.items()))]
        commit = hashlib.sha1("\n".join(parts).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions |= dict.fromkeys(revisions or ("main",), commit)
        return commit


class LoopbackHub(ThreadingHTTPServer):
    """Serves `repositories` in threads of this process between `with` and its end."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[str] = []
        self.is_down = False
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, kind: str, name: str, files: dict[str, bytes] | None = None, **about) -> Repository:
        """A new repository, with `files` on its main branch."""
        found = self.repositories[kind, name] = Repository(kind, name, **about)
        if files is not None:
            found.commit(files)
        return found

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A client that went away is what many tests are about."""


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> str:
    """An address at which connections are refused."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


class _Refused(Exception):
    """The hub's answer with this status, message and code."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(status, message, code)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.asked.append(f"{self.command} {path}")
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        self.trusted, self.known = token == TOKEN, token is not None
        try:
            if self.server.is_down:
                raise _Refused(500, "Too bad")
            if token not in (None, TOKEN, OTHER_TOKEN):
                raise _Refused(401, "Invalid username or password.")
            for route, serve in _ROUTES:
                if found := re.fullmatch(route, path):
                    return serve(self, **found.groupdict())
            raise _Refused(404, "Entry not found", "EntryNotFound")
        except _Refused as refused:
            status, message, code = refused.args
            told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
            self._answer({"error": message}, status, told)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_) -> None:
        """Nothing on stderr; `LoopbackHub.asked` holds every request."""

    def _answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repository(self, kind: str, name: str, restricted: bool = False) -> Repository:
        found = self.server.repositories.get((kind, name))
        if found is None or (found.private and not self.trusted):
            # As the hub does: who is not known does not learn which of the two it is.
            raise _Refused(404 if self.known else 401, "Repository not found", "RepoNotFound")
        if restricted and found.gated and not self.trusted:
            raise _Refused(403 if self.known else 401, f"Access to {name} is restricted.", "GatedRepo")
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit]

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        repository = self._repository(kind, name)
        commit, files = self._files(repository, revision)
        card = re.match(rb"---\n(.*?)\n---", files.get("README.md", b""), re.DOTALL)
        about = {"id": name, "modelId": name, "sha": commit, "private": repository.private, "tags": [], "downloads": 0}
        about |= {"gated": "auto" if repository.gated else False, "cardData": yaml.safe_load(card[1]) if card else None}
        self._answer(about | {"siblings": [{"rfilename": file} for file in sorted(files)]})

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        files = sorted(self._files(self._repository(kind, name), revision)[1].items())
        files = [(file, content) for file, content in files if not folder or file.startswith(f"{folder}/")]
        if folder and not files:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        self._answer([{"type": "file", "path": f, "size": len(b), "oid": _sha(b)[:40]} for f, b in files])

    def may_read(self, kind: str, name: str) -> None:
        self._repository(kind, name, restricted=True)
        self._answer({})

    def resolve(self, name: str, revision: str, file: str, kind: str = "model") -> None:
        repository = self._repository(kind, name, restricted=file != "README.md")
        commit, files = self._files(repository, revision)
        if file not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        if repository.behind_proxy and file == "model.safetensors":
            return self._answer(b"<html>Blocked</html>", 403)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha(files[file])}"'}
        if file.endswith((".bin", ".safetensors", ".parquet", ".h5")):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(files[file]))}
        self._answer(files[file], 200, headers)

    # Writing

    def whoami(self) -> None:
        if not self.known:
            raise _Refused(401, "Invalid username or password.")
        self._answer({"type": "user", "name": USER if self.trusted else "somebody", "orgs": [], "auth": {}})

    def create(self) -> None:
        asked = json.loads(self.body)
        name, kind = f"{asked.get('organization') or USER}/{asked['name']}", asked.get("type", "model")
        if not self.trusted:
            raise _Refused(403 if self.known else 401, "You have no right to write here")
        if (kind, name) in self.server.repositories:
            # Without the address, as a proxy or an older hub answers.
            raise _Refused(409, "You already created this model repo")
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.add(kind, name, {}, private=private)
        self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def yaml(self) -> None:
        self._answer({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(self.body)["files"]]
        self._answer({"files": files})

    def push(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        if not self.trusted:
            raise _Refused(403, "You have no right to write here")
        files = dict(repository.commits.get(repository.revisions.get(revision, ""), {}))
        for line in map(json.loads, filter(None, self.body.split(b"\n"))):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit, address = repository.commit(files, revision), f"{self.server.url}/{name}"
        self._answer({"success": True, "commitOid": commit, "commitUrl": f"{address}/commit/{commit}"})


_NAME, _REVISION = r"(?P<name>[^/]+(?:/[^/]+)?)", r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
_API, _FILE = rf"/api/(?P<kind>model|dataset)s/{_NAME}", rf"{_NAME}/resolve/{_REVISION}/(?P<file>.+)"
_ROUTES = (
    (r"/api/whoami-v2", _Handler.whoami),
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.yaml),
    (rf"{_API}/preupload/{_REVISION}", _Handler.preupload),
    (rf"{_API}/commit/{_REVISION}", _Handler.push),
    (rf"{_API}/revision/{_REVISION}", _Handler.info),
    (rf"{_API}/tree/{_REVISION}(?:/(?P<folder>.+))?", _Handler.tree),
    (rf"{_API}/auth-check", _Handler.may_read),
    (_API, _Handler.info),
    (rf"/(?P<kind>dataset)s/{_FILE}", _Handler.resolve),
    (rf"/{_FILE}", _Handler.resolve),
)


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
