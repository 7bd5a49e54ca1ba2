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
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

DATE = "2026-01-02T03:04:05.000Z"


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        self.status, self.message, self.code = status, message, code


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
    parent: str | None = None


@dataclass
class Repo:
    id: str
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    received: set[str] = field(default_factory=set)  # SHA-256 of the LFS objects that were uploaded

    def add(self, branch: str, title: str, files: dict[str, File]) -> Commit:
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{self.id} {parent} {title} {sorted(files)} {len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, files, parent)
        self.branches[branch] = oid
        return self.commits[oid]

    def resolve(self, revision: str) -> Commit:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        found = [c for c in self.commits.values() if c.oid == oid or (len(oid) >= 7 and c.oid.startswith(oid))]
        if not found:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def history(self, revision: str) -> list[Commit]:
        out = [self.resolve(revision)]
        while out[-1].parent:
            out.append(self.commits[out[-1].parent])
        return out


@dataclass
class Fault:
    """A fault of the next ``times`` requests that have this method and whose path matches ``pattern``.

    Args:
        action: An error status; "cut" (the server reads half of the request and closes the connection), "lost" (the
            request takes effect and its answer is lost), "flip" (one bit of the answer's body is wrong), "short" (the
            answer lacks its last byte); or a function to call before the normal answer.
    """

    method: str
    pattern: str
    action: int | str | Callable[[], object]
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
        self.tokens = {"hf_writer": "write", "hf_reader": "read"}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.inline = False  # whether every file is sent inside the commit, without LFS or Xet
        self._lock = threading.Lock()

    def store(self, content: bytes, lfs: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.folder / sha256
        if not path.exists():
            partial = path.with_suffix(f".{threading.get_ident()}")
            partial.write_bytes(content)
            partial.rename(path)
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return File(sha256, sha1, len(content), lfs)

    def create(self, repo_id: str, private: bool) -> Repo:
        repo = self.repos[repo_id] = Repo(repo_id, private)
        repo.add("main", "initial commit", {".gitattributes": self.store(b"*.safetensors filter=lfs\n", False)})
        return repo

    def push(self, repo_id: str, name: str, content: bytes, branch: str = "main") -> str:
        """Commit a file as another user. Creates the repo if it does not exist."""
        repo = self.repos[repo_id] if repo_id in self.repos else self.create(repo_id, private=False)
        files = {**repo.resolve(branch).files, name: self.store(content, lfs=name.endswith(".safetensors"))}
        return repo.add(branch, f"add {name}", files).oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        return {
            name: (self.folder / file.sha256).read_bytes()
            for name, file in self.repos[repo_id].resolve(revision).files.items()
        }

    async def __call__(self, scope, receive, send) -> None:
        request = Request(scope, receive)
        path = scope["raw_path"].decode()
        self.log.append((request.method, path))
        fault = self._fault(request.method, path)
        action = fault.action if fault else None
        if action == "cut":
            await receive()
            await _close(send)
        if callable(action):
            await asyncio.to_thread(action)
        if isinstance(action, int):
            await request.body()
            response: Response = JSONResponse({"error": "on purpose"}, action, fault.headers if fault else None)
        else:
            try:
                response = await self._answer(request, path)
            except ClientDisconnect:
                return
            except HubError as error:
                headers = {"X-Error-Message": error.message}
                if error.code:
                    headers["X-Error-Code"] = error.code
                response = JSONResponse({"error": error.message}, error.status, headers)
        if action == "lost":
            await _close(send)
        if action in ("flip", "short"):
            await _spoil(str(action), response, send)
        else:
            await response(scope, receive, send)

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method == method and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    async def _answer(self, request: Request, path: str) -> Response:
        role = self._role(request)
        if path == "/api/whoami-v2":
            if role is None:
                raise HubError(401, "Invalid credentials")
            return JSONResponse({"name": "somebody", "orgs": [{"name": "org", "roleInOrg": role}]})
        if path == "/api/validate-yaml":
            return JSONResponse({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(await request.json(), role)
        if match := re.fullmatch(r"/lfs/([^/]+/[^/]+)/([0-9a-f]{64})", path):
            return await self._receive(request, *match.groups())
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return await self._batch(request, self._repo(match[1], role, write=True))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(request, self._repo(match[1], role), unquote(match[2]), unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+)(?:/.*)?)?)?", path):
            return await self._api(request, self._repo(match[1], role), role, match[2], unquote(match[3] or "main"))
        raise HubError(404, f"no such path: {path}")

    def _role(self, request: Request) -> str | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        role = self.tokens.get(header.removeprefix("Bearer "))
        if role is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return role

    def _repo(self, repo_id: str, role: str | None, write: bool = False) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and role is None):
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and role != "write":
            raise HubError(403, f"You have no write access to {repo_id}")
        return repo

    def _create(self, body: dict, role: str | None) -> Response:
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write" or body.get("organization", "org") != "org":
            raise HubError(403, f"You don't have the rights to create a model under {body.get('organization')!r}")
        repo_id = f"{body['organization']}/{body['name']}"
        url = f"{self.endpoint}/{repo_id}"
        with self._lock:
            if repo_id in self.repos:
                return JSONResponse({"error": "You already created this model repo", "url": url}, 409)
            private = body.get("visibility") == "private" or bool(body.get("private"))
            self.create(repo_id, private)
        return JSONResponse({"url": url})

    async def _api(self, request: Request, repo: Repo, role: str | None, verb: str | None, revision: str) -> Response:
        if verb in (None, "revision"):
            return JSONResponse(_info(repo, repo.resolve(revision)))
        if verb == "tree":
            commit = repo.resolve(revision)
            return JSONResponse([_row(name, file) for name, file in sorted(commit.files.items())])
        if verb == "refs":
            refs = {"branches": (repo.branches, "heads"), "tags": (repo.tags, "tags")}
            rows = {
                kind: [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in found.items()]
                for kind, (found, folder) in refs.items()
            }
            return JSONResponse({**rows, "converts": []})
        if verb == "commits":
            rows = [
                {"id": c.oid, "title": c.title, "message": "", "date": DATE, "authors": [{"user": "somebody"}]}
                for c in repo.history(revision)
            ]
            return JSONResponse(rows)
        self._repo(repo.id, role, write=True)
        if verb == "preupload":
            return self._preupload(await request.json(), repo, revision)
        if verb == "commit":
            return self._commit(await request.body(), repo, revision)
        if verb == "branch" and request.method == "DELETE":
            if repo.branches.pop(revision, None) is None:
                raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return JSONResponse({})
        body = await request.json()
        if verb == "branch":
            if revision in repo.branches:
                raise HubError(409, "Reference already exists")
            repo.branches[revision] = repo.resolve(body.get("startingPoint") or "main").oid
            return JSONResponse({})
        if verb == "tag":
            if body["tag"] in repo.tags:
                raise HubError(409, "Tag reference exists already")
            repo.tags[body["tag"]] = repo.resolve(revision).oid
            return JSONResponse({})
        raise HubError(404, f"no such path: {verb}")

    def _preupload(self, body: dict, repo: Repo, revision: str) -> Response:
        files = repo.resolve(revision).files
        rows = []
        for file in body["files"]:
            lfs = not self.inline and file["size"] > 0 and file["path"].endswith(".safetensors")
            row = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if file["path"] in files:
                row["oid"] = files[file["path"]].etag
            rows.append(row)
        return JSONResponse({"files": rows})

    async def _batch(self, request: Request, repo: Repo) -> Response:
        body = await request.json()
        objects = []
        for item in body["objects"]:
            row = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in repo.received:
                secret = self._secret(repo.id, item["oid"])
                row["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{repo.id}/{item['oid']}?secret={secret}"}}
            objects.append(row)
        return JSONResponse({"transfer": "basic", "objects": objects})

    def _secret(self, repo_id: str, oid: str) -> str:
        return hashlib.sha256(f"{id(self)} {repo_id} {oid}".encode()).hexdigest()

    async def _receive(self, request: Request, repo_id: str, oid: str) -> Response:
        content = await request.body()
        if request.query_params.get("secret") != self._secret(repo_id, oid):
            raise HubError(403, "the address of this upload is not signed")
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "the content has another SHA-256")
        self.store(content, lfs=True)
        self.repos[repo_id].received.add(oid)
        return Response()

    def _commit(self, body: bytes, repo: Repo, revision: str) -> Response:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        with self._lock:
            head = repo.resolve(revision)
            if header.get("parentCommit") and not head.oid.startswith(header["parentCommit"]):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = self.store(base64.b64decode(value["content"]), lfs=False)
                elif line["key"] == "lfsFile":
                    if value["oid"] not in repo.received:
                        raise HubError(400, f"no object {value['oid']} was uploaded")
                    files[value["path"]] = self.store((self.folder / value["oid"]).read_bytes(), lfs=True)
                elif line["key"] == "deletedFile":
                    if value["path"] not in files:
                        raise HubError(404, f"{value['path']} does not exist", "EntryNotFound")
                    del files[value["path"]]
            commit = repo.add(revision, header["summary"], files)
        return JSONResponse({"commitUrl": f"{self.endpoint}/{repo.id}/commit/{commit.oid}", "commitOid": commit.oid})

    def _file(self, request: Request, repo: Repo, revision: str, name: str) -> Response:
        commit = repo.resolve(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if name not in commit.files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return JSONResponse({"error": "Entry not found"}, 404, headers)
        file = commit.files[name]
        headers |= {"ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        return FileResponse(self.folder / file.sha256, headers=headers)


def _info(repo: Repo, commit: Commit) -> dict:
    siblings = []
    for name, file in sorted(commit.files.items()):
        row = {"rfilename": name, "size": file.size, "blobId": file.sha1}
        if file.lfs:
            row["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
        siblings.append(row)
    return {
        "id": repo.id,
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "tags": [],
        "siblings": siblings,
        "lastModified": DATE,
        "createdAt": DATE,
    }


def _row(name: str, file: File) -> dict:
    row = {"type": "file", "path": name, "size": file.size, "oid": file.sha1}
    if file.lfs:
        row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return row


async def _close(send) -> None:
    """Close the connection, by an incomplete answer."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    raise ConnectionAbortedError("on purpose")


async def _spoil(how: str, response: Response, send) -> None:
    body = bytearray(Path(response.path).read_bytes() if isinstance(response, FileResponse) else response.body)
    headers = {k: v for k, v in response.headers.items() if k != "content-length"}
    if how == "flip":
        body[len(body) // 2] ^= 1
    if how == "short":
        del body[-1]
    headers["content-length"] = str(len(body))
    start = {"type": "http.response.start", "status": response.status_code}
    await send({**start, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": bytes(body)})
