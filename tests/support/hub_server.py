"""A small Hugging Face Hub for tests: the part of its HTTP protocol that ``huggingface_hub`` needs for model repos.

Files are stored in a folder by their SHA-256; repos, commits, branches and tags in memory. A commit takes effect
completely or not at all. ``Hub.faults`` breaks requests on purpose.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import uvicorn
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

ROLES = {None: "anybody", "Bearer hf_reader": "reader", "Bearer hf_writer": "writer"}


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.headers = status, {"X-Error-Message": message, "X-Error-Code": code}


@dataclass(frozen=True)
class File:
    sha256: str
    sha1: str  # git's id of the content
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.sha1


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    id: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, File]) -> str:
        oid = hashlib.sha1(f"{self.id} {title} {sorted(files)} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files)
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]


@dataclass
class Fault:
    """A fault of the next ``times`` requests that have this method and whose path matches ``pattern``.

    Args:
        action: An error status; the content of another answer; "cut" (the server reads a part of the request and closes
            the connection), "half" (the request takes effect, and the connection closes after half of the answer),
            "flip" (some bits of the answer are wrong), "whole" (the server ignores that a part of a file was
            requested); or a function to call before the normal answer.
    """

    method: str
    pattern: str
    action: int | bytes | str | Callable[[], object]
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


class Hub:
    """The state of the Hub, and the thread that answers requests."""

    def __init__(self, folder: Path, listening: socket.socket):
        self.folder = folder
        host, port = listening.getsockname()
        self.endpoint = f"http://{host}:{port}"
        self.reset()
        config = uvicorn.Config(self, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            threading.Event().wait(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def reset(self) -> None:
        """Remove everything. The token "hf_writer" can write to "org", "hf_reader" can only read."""
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, str | None]] = []  # method, path and range of each request
        self.received: set[str] = set()  # SHA-256 of the LFS objects that were uploaded

    def store(self, content: bytes, lfs: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / sha256).write_bytes(content)
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, sha1, len(content), lfs)

    def create(self, repo_id: str, private: bool = False) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id, private)
        repo.add("main", "initial commit", {".gitattributes": self.store(b"*.safetensors filter=lfs\n", False)})
        return repo

    def push(self, repo_id: str, name: str, content: bytes, branch: str = "main") -> str:
        """Commit a file as another user. Creates the repo if it does not exist."""
        repo = self.repos.get(repo_id) or self.create(repo_id)
        files = {**repo.resolve(branch).files, name: self.store(content, lfs=name.endswith(".safetensors"))}
        return repo.add(branch, f"add {name}", files)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        files = self.repos[repo_id].resolve(revision).files
        return {name: (self.folder / file.sha256).read_bytes() for name, file in files.items()}

    async def __call__(self, scope, receive, send) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode()
        self.log.append((request.method, path, request.headers.get("range")))
        fault = self._fault(request.method, path)
        action = fault.action if fault else None
        if callable(action):
            await asyncio.to_thread(action)
        if action == "whole":
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
        if action == "cut":
            await receive()
            response = Response(b"on purpose")
        elif isinstance(action, int | bytes):
            await request.body()
            response = Response(action) if isinstance(action, bytes) else Response(b"", action, fault.headers)
        else:
            try:
                response = await self._answer(request, path)
            except HubError as error:
                response = JSONResponse({}, error.status, error.headers)
        if action == "flip":
            send = _with_wrong_bits(send)
        if action in ("cut", "half"):
            send = _broken_off(send)
        await response(scope, receive, send)

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    async def _answer(self, request: Request, path: str) -> Response:
        role = ROLES.get(request.headers.get("authorization"))
        if role is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        if path.startswith("/lfs/"):  # real addresses are signed and need no token
            self.received.add(self.store(await request.body(), lfs=True).sha256)
            return Response()
        if path == "/api/validate-yaml":
            return JSONResponse({"errors": [], "warnings": []})
        if request.method not in ("GET", "HEAD") and role != "writer":
            raise HubError(403, "You have no write access")
        if path == "/api/repos/create":
            return self._create(await request.json())
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(await request.json())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(self._repo(match[1], role), unquote(match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+)(?:/.*)?)?)?", path):
            return await self._api(request, self._repo(match[1], role), match[2], unquote(match[3] or "main"))
        raise HubError(404, f"no such path: {path}")

    def _repo(self, repo_id: str, role: str) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and role == "anybody"):
            raise HubError(404, "Repository not found", "RepoNotFound")
        return repo

    def _create(self, body: dict) -> Response:
        repo_id = f"{body['organization']}/{body['name']}"
        is_new = repo_id not in self.repos
        if is_new:
            self.create(repo_id, private=body.get("visibility") == "private" or bool(body.get("private")))
        return JSONResponse({"url": f"{self.endpoint}/{repo_id}"}, 200 if is_new else 409)

    async def _api(self, request: Request, repo: Repo, verb: str | None, revision: str) -> Response:
        if verb in (None, "revision"):
            return JSONResponse(_info(repo, repo.resolve(revision)))
        if verb == "tree":
            return JSONResponse([_row(name, file) for name, file in sorted(repo.resolve(revision).files.items())])
        if verb == "refs":
            refs = {"branches": (repo.branches, "heads"), "tags": (repo.tags, "tags")}
            rows = {
                kind: [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in found.items()]
                for kind, (found, folder) in refs.items()
            }
            return JSONResponse({**rows, "converts": []})
        if verb == "preupload":
            return self._preupload(await request.json(), repo.resolve(revision).files)
        if verb == "commit":
            return self._commit(await request.body(), repo, revision)
        if verb == "branch" and request.method == "DELETE":
            del repo.branches[revision]
        elif verb == "branch":
            repo.branches[revision] = repo.resolve((await request.json()).get("startingPoint") or "main").oid
        elif verb == "tag":
            tag = (await request.json())["tag"]
            if tag in repo.tags:
                raise HubError(409, "Tag reference exists already")
            repo.tags[tag] = repo.resolve(revision).oid
        else:
            raise HubError(404, f"no such path: {verb}")
        return JSONResponse({})

    def _preupload(self, body: dict, there: dict[str, File]) -> Response:
        rows = []
        for file in body["files"]:
            mode = "lfs" if file["size"] and file["path"].endswith(".safetensors") else "regular"
            row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in there:
                row["oid"] = there[file["path"]].etag
            rows.append(row)
        return JSONResponse({"files": rows})

    def _batch(self, body: dict) -> Response:
        rows = [{"oid": item["oid"], "size": item["size"]} for item in body["objects"]]
        for row in rows:
            if row["oid"] not in self.received:
                row["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{row['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": rows})

    def _commit(self, body: bytes, repo: Repo, revision: str) -> Response:
        header, *lines = map(json.loads, body.splitlines())
        head = repo.resolve(revision)
        if header["value"].get("parentCommit") not in (None, head.oid):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.store(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile" and value["oid"] in self.received:
                files[value["path"]] = self.store((self.folder / value["oid"]).read_bytes(), lfs=True)
            else:
                raise HubError(400, f"cannot be committed: {line['key']} {value}")
        oid = repo.add(revision, header["value"]["summary"], files)
        return JSONResponse({"commitUrl": f"{self.endpoint}/{repo.id}/commit/{oid}", "commitOid": oid})

    def _file(self, repo: Repo, revision: str, name: str) -> Response:
        commit = repo.resolve(revision)
        if name not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        file = commit.files[name]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        return FileResponse(self.folder / file.sha256, headers=headers)


def _info(repo: Repo, commit: Commit) -> dict:
    siblings = [{"rfilename": name, "size": file.size} for name, file in sorted(commit.files.items())]
    return {"id": repo.id, "sha": commit.oid, "private": repo.private, "tags": [], "siblings": siblings}


def _row(name: str, file: File) -> dict:
    row = {"type": "file", "path": name, "size": file.size, "oid": file.sha1}
    if file.lfs:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return row


def _with_wrong_bits(send):
    async def wrong(message):
        body = message.get("body")
        await send({**message, "body": bytes([body[0] ^ 1]) + body[1:]} if body else message)

    return wrong


def _broken_off(send):
    """Send half of an answer, then close the connection."""
    left = 0

    async def half(message):
        nonlocal left
        if message["type"] == "http.response.start":
            left = int(dict(message["headers"])[b"content-length"]) // 2
            return await send(message)
        await send({**message, "body": message["body"][:left], "more_body": True})
        left -= len(message["body"])
        if left <= 0:
            raise ConnectionAbortedError("on purpose")
        return None

    return half
