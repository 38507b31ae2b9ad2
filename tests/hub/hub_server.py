"""A small Hugging Face Hub: repositories, commits, revisions and LFS, over HTTP, as the real client asks for them.

It keeps everything in memory, wants a token for what is private or written, and has faults on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_testtokentesttokentesttokentest"
LARGE = (".safetensors", ".arrow", ".h5ad", ".bin")
"""Endings of files that travel by LFS, as on the Hub."""


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Hash -> path -> content."""
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class Fault:
    """What goes wrong with requests that match, ``times`` times: an HTTP status, or ``cut`` or ``wrong`` content."""

    def __init__(self, method: str, pattern: str, what: int | str, times: int = 1):
        self.method, self.pattern, self.what, self.times = method, re.compile(pattern), what, times

    def strikes(self, method: str, path: str) -> bool:
        if self.times > 0 and method == self.method and self.pattern.search(path):
            self.times -= 1
            return True
        return False


class HubServer(ThreadingHTTPServer):
    """The server; ``url`` is what HF_ENDPOINT should be."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.token = TOKEN
        self.xet: Path | None = None
        """Folder of the storage that Xet writes into, where the client may use it."""
        self.in_xet: dict[str, bytes] = {}
        """SHA-256 -> content of what the Hub will find there: reading that storage is the Hub's own matter."""
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def add(self, repo: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> str:
        """Commit files to a repository as its owner would; the hash."""
        one = self.repos.setdefault((kind, repo), Repo(private))
        return self.commit(one, dict(files), "added", "main")

    def commit(self, repo: Repo, files: dict[str, bytes], message: str, branch: str) -> str:
        oid = hashlib.sha1(f"{len(repo.messages)} {message} {sorted(files)}".encode()).hexdigest()
        repo.commits[oid], repo.branches[branch] = files, oid
        repo.messages.append(message)
        return oid

    def files(self, repo: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        one = self.repos[kind, repo]
        return one.commits[one.branches.get(revision, revision)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.raw = parts.path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        with server.lock:
            server.asked.append(f"{self.command} {path}")
            self.fault = next((one.what for one in server.faults if one.strikes(self.command, path)), None)
        if isinstance(self.fault, int):
            self._json({"error": "it goes wrong on request"}, self.fault)
            return
        for method, pattern, answer in ROUTES:
            if method == self.command and (match := pattern.fullmatch(self.raw)):
                answer(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                return
        self._json({"error": f"this server has no {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    # ------------------------------------------------------------------------------------------------------- answers
    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        if self.fault == "wrong":
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.fault == "cut" else content)
        self.close_connection = self.fault == "cut"

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json", **headers)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _write_allowed(self) -> bool:
        if self._allowed():
            return True
        self._json({"error": "Invalid credentials in Authorization header"}, 401)
        return False

    def _repo(self, kind: str, repo: str) -> Repo | None:
        """The repository, for who may see it; else the refusal is sent."""
        found = self.server.repos.get((kind, repo))
        if found is None or (found.private and not self._allowed()):
            self._json({"error": "Repository not found"}, 404 if self._allowed() else 401, X_Error_Code="RepoNotFound")
            return None
        return found

    def _commit(self, repo: Repo, revision: str) -> str | None:
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            self._json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return oid

    # -------------------------------------------------------------------------------------------------------- routes
    def whoami(self) -> None:
        if self._write_allowed():
            self._json({"name": "ORG", "type": "user", "orgs": []})

    def create(self) -> None:
        if not self._write_allowed():
            return
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'ORG'}/{asked['name']}"
        key = asked.get("type", "model"), name
        if key in self.server.repos:
            self._json({"error": "You already created this repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repos[key] = one = Repo(private)
        self.server.commit(one, {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit", "main")
        self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def info(self, kind: str, repo: str, revision: str = "main") -> None:
        if (one := self._repo(kind, repo)) and (oid := self._commit(one, revision or "main")):
            siblings = [{"rfilename": path} for path in one.commits[oid]]
            about = {"id": repo, "modelId": repo, "sha": oid, "private": one.private, "siblings": siblings}
            self._json(about | {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})

    def branch(self, kind: str, repo: str, branch: str) -> None:
        if self._write_allowed() and (one := self._repo(kind, repo)):
            if branch in one.branches:
                self._json({"error": "Reference already exists"}, 409)
            else:
                one.branches[branch] = one.branches["main"]
                self._json({})

    def tree(self, kind: str, repo: str, revision: str, path: str = "") -> None:
        if not ((one := self._repo(kind, repo)) and (oid := self._commit(one, revision))):
            return
        below = f"{path}/" if path else ""
        files = {name: content for name, content in one.commits[oid].items() if name.startswith(below)}
        if path and not files:
            self._json({"error": "no such folder"}, 404, X_Error_Code="EntryNotFound")
            return
        entries: list[dict[str, Any]] = []
        for name, content in sorted(files.items()):
            inner = name.removeprefix(below).split("/")
            for depth in range(1, len(inner)):
                folder = below + "/".join(inner[:depth])
                if folder not in {entry["path"] for entry in entries}:
                    entries.append({"type": "directory", "path": folder, "size": 0, "oid": "0" * 40})
            entries.append(entry_of(name, content))
        if "true" not in str(self.query.get("recursive", "")).lower():
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(below)]
        self._json(entries)

    def paths(self, kind: str, repo: str, revision: str) -> None:
        if not ((one := self._repo(kind, repo)) and (oid := self._commit(one, revision))):
            return
        asked = (
            json.loads(self.body)["paths"]
            if self.body.lstrip().startswith(b"{")
            else parse_qs(self.body.decode()).get("paths", [])
        )
        files = one.commits[oid]
        found = [entry_of(name, files[name]) for name in asked if name in files]
        folders = [name for name in asked if any(path.startswith(f"{name}/") for path in files)]
        found += [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in folders]
        self._json(found)

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        if not (self._write_allowed() and (one := self._repo(kind, repo)) and (oid := self._commit(one, revision))):
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            mode, there = "lfs" if file["path"].endswith(LARGE) else "regular", one.commits[oid].get(file["path"])
            known = None if there is None else oid_of(file["path"], there)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self._json({"files": answers})

    def lfs_batch(self, repo: str, datasets: str = "") -> None:
        if not self._write_allowed():
            return
        objects = []
        for one in json.loads(self.body)["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.server.large:
                upload = {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}
                answer["actions"] = {"upload": upload}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def xet_token(self, kind: str, repo: str, revision: str) -> None:
        if self._write_allowed() and self.server.xet is not None:
            self._json({"accessToken": "x", "exp": int(time.time()) + 3600, "casUrl": f"local://{self.server.xet}"})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._json({"error": "not the content that was announced"}, 400)
            return
        self.server.large[oid] = self.body
        self._json({})

    def commit(self, kind: str, repo: str, revision: str) -> None:
        if not (self._write_allowed() and (one := self._repo(kind, repo)) and (oid := self._commit(one, revision))):
            return
        files, message = dict(one.commits[oid]), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    xet = self.server.xet
                    if value["oid"] in self.server.in_xet and xet is not None and any(xet.rglob("*.*")):
                        self.server.large[value["oid"]] = self.server.in_xet[value["oid"]]
                    if value["oid"] not in self.server.large:
                        self._json({"error": f"{value['path']}: its content was never sent"}, 400)
                        return
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        new = self.server.commit(one, files, message, revision)
        self._json({"commitUrl": f"{self.server.url}/{repo}/commit/{new}", "commitOid": new, "success": True})

    def resolve(self, repo: str, revision: str, path: str, datasets: str = "") -> None:
        kind = "dataset" if datasets else "model"
        if not ((one := self._repo(kind, repo)) and (oid := self._commit(one, revision))):
            return
        if path not in one.commits[oid]:
            self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
            return
        content = one.commits[oid][path]
        headers = {"X_Repo_Commit": oid, "ETag": f'"{oid_of(path, content)}"', "Accept_Ranges": "bytes"}
        if path.endswith(LARGE):
            headers |= {"X_Linked_Etag": f'"{oid_of(path, content)}"', "X_Linked_Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            said = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            self._send(content[first : last + 1], 206, Content_Range=said, **headers)
        else:
            self._send(content, **headers)


def oid_of(path: str, content: bytes) -> str:
    """SHA-256 of a large file, git's hash of another one."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry_of(path: str, content: bytes) -> dict[str, Any]:
    """A file in a listing."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid_of(path, content)[:40]}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": oid_of(path, content), "size": len(content), "pointerSize": 130}
    return entry


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|dataset)s/{_REPO}"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in [
        ("GET", "/api/whoami-v2", Handler.whoami),
        ("POST", "/api/repos/create", Handler.create),
        ("POST", "/api/validate-yaml", Handler.validate),
        ("GET", _API, Handler.info),
        ("GET", rf"{_API}/revision/(?P<revision>[^/]+)", Handler.info),
        ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", Handler.branch),
        ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
        ("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)", Handler.paths),
        ("POST", rf"{_API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
        ("POST", rf"{_API}/commit/(?P<revision>[^/]+)", Handler.commit),
        ("POST", rf"/(?P<datasets>datasets/)?{_REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
        ("GET", rf"{_API}/xet-write-token/(?P<revision>[^/]+)", Handler.xet_token),
        ("PUT", "/lfs/(?P<oid>[0-9a-f]+)", Handler.lfs_put),
        *(
            (method, rf"/(?P<datasets>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve)
            for method in ("GET", "HEAD")
        ),
    ]
]
