"""A small Hub on this machine, for tests of what goes over HTTP: huggingface_hub, datasets and transformers accept it.

    python tests/hub_server.py        # prints its address; the token is hf_alice

A client finds it by HF_ENDPOINT=address HF_TOKEN=hf_alice HF_HUB_DISABLE_XET=1 and a fresh HF_HOME. Models, data
sets and Spaces, which are never built, live in memory as long as it runs. The tests' own door, which the real Hub does
not have:

    POST   /test/faults    {"method": "PUT", "path": "regex", "times": 2, "status": 503}, or "drop": true for a
                           connection that breaks after the first bytes, or "silent": true for no answer at all;
                           without "times", for ever
    DELETE /test/faults    no more of them
    GET    /test/log       [method, path, status] of all requests; -1 where there was no answer
    GET    /test/spaces/USER/NAME   the hardware and the secrets, with their values
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


TOKENS = {"hf_alice": ("alice", "write"), "hf_alice_reads": ("alice", "read"), "hf_bob": ("bob", "write")}

Files = dict[str, tuple[bytes, bool]]  # path -> content, and whether it is kept by LFS


@dataclass
class Repository:
    """Its commits, each the whole of its files, by their ids; and where the branches stand."""

    name: str
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    hardware: str = "cpu-basic"  # of a Space
    secrets: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files, title: str) -> str:
        commit = hashlib.sha1(f"{self.name} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit], self.titles[commit], self.branches[branch] = files, title, commit
        return commit


class Refusal(Exception):
    """An answer that is an error, with the headers by which the clients know it."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


@dataclass
class Answer:
    """What a route returns when it is more than JSON."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def _oid(content: bytes, lfs: bool) -> str:
    """The name by which clients know what is already there: git's of a file, SHA-256 of one in LFS."""
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


ROUTES: list[tuple[str, re.Pattern, Callable]] = []
_REPOSITORY = r"(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"


def route(method: str, path: str):
    """Registers a handler for requests; `REPO` in the path stands for a repository, `<x>` for a segment."""
    pattern = re.sub("(?<!P)<([a-z]+)>", r"(?P<\1>[^/]+)", path).replace("REPO", _REPOSITORY)

    def register(handler: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


class Hub:
    """What it knows; the routes below are its methods."""

    def __init__(self):
        self.address = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.faults: list[dict[str, Any]] = []
        self.log: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()

    def fault(self, method: str, path: str) -> dict | None:
        for fault in self.faults:
            if fault.get("times", 1) > 0 and fault.get("method", method) == method and re.search(fault["path"], path):
                if "times" in fault:
                    fault["times"] -= 1
                return fault
        return None

    def answer(self, method: str, path: str, request: "Request") -> Answer:
        for wanted, pattern, handler in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
                with self.lock:
                    found = handler(self, request, **parts)
                if isinstance(found, Answer):
                    return found
                return Answer(json.dumps(found).encode(), headers={"Content-Type": "application/json"})
        raise Refusal(404, f"This Hub has no {method} {path}.")

    def find(self, request: "Request", kind: str, name: str, *, write: bool = False) -> Repository:
        user = request.user(required=write)
        repository = self.repositories.get((kind, name))
        owner = name.split("/")[0]
        if repository is None or (repository.private and (user is None or user[0] != owner)):
            raise Refusal(404, "Repository not found", "RepoNotFound") if user else Refusal(401, "Who are you?")
        if write:
            self.may_write(user, owner)
        return repository

    def may_write(self, user: tuple[str, str] | None, owner: str) -> None:
        if user != (owner, "write"):
            raise Refusal(403, f"You do not have the rights to write for {owner}")

    def commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: "Request"):
        user, role = request.user(required=True) or ("", "")
        token = {"displayName": "test", "role": role}
        return {"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: "Request"):
        return {"errors": [], "warnings": []}

    @route("POST", "/api/repos/create")
    def create(self, request: "Request"):
        user, wanted = request.user(required=True) or ("", ""), request.json()
        owner, kind = wanted.get("organization") or user[0], wanted.get("type") or "model"
        self.may_write(user, owner)
        name = f"{owner}/{wanted['name']}"
        url = f"{self.address}/{'' if kind == 'model' else f'{kind}s/'}{name}"
        if (kind, name) in self.repositories:
            return Answer(json.dumps({"error": "You already created this repo", "url": url}).encode(), 409)
        repository = self.repositories[kind, name] = Repository(name, wanted.get("visibility") == "private")
        files: Files = {".gitattributes": (b"*.safetensors filter=lfs\n", False)}
        if kind == "space":
            if wanted.get("sdk") != "gradio":
                raise Refusal(400, "sdk must be gradio")
            repository.hardware = wanted.get("hardware", repository.hardware)
            card = f"---\ntitle: {wanted['name']}\nemoji: X\nsdk: gradio\nsdk_version: 1.0.0\napp_file: main.py\n---\n"
            files["README.md"] = card.encode(), False
        repository.commit("main", files, "initial commit")
        return {"url": url, "name": name}

    @route("GET", "/api/REPO")
    @route("GET", "/api/REPO/revision/<revision>")
    def info(self, request: "Request", kind: str, name: str, revision: str = "main"):
        repository = self.find(request, kind, name)
        commit = self.commit_of(repository, revision)
        return {
            **{"_id": hashlib.md5(name.encode()).hexdigest()[:24], "id": name, "sha": commit, "tags": []},
            **{"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0},
            "lastModified": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "siblings": [{"rfilename": path} for path in sorted(repository.commits[commit])],
            **({"runtime": self.runtime(repository)} if kind == "space" else {}),
        }

    def runtime(self, repository: Repository) -> dict[str, Any]:
        return {"stage": "BUILDING", "hardware": {"current": None, "requested": repository.hardware}}

    @route("POST", "/api/REPO/hardware")
    def request_hardware(self, request: "Request", kind: str, name: str):
        repository = self.find(request, kind, name, write=True)
        repository.hardware = request.json()["flavor"]
        return self.runtime(repository)

    @route("POST", "/api/REPO/secrets")
    def add_secret(self, request: "Request", kind: str, name: str):
        secret = request.json()
        self.find(request, kind, name, write=True).secrets[secret["key"]] = secret["value"]
        return {}

    @route("GET", "/api/REPO/refs")
    def refs(self, request: "Request", kind: str, name: str):
        branches = self.find(request, kind, name).branches
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in branches.items()]
        return {"branches": listed, "tags": [], "converts": [], "pullRequests": []}

    @route("GET", "/api/REPO/commits/<revision>")
    def commits(self, request: "Request", kind: str, name: str, revision: str):
        """Of all branches, the newest first."""
        titles = self.find(request, kind, name).titles.items()
        date = "2026-01-01T00:00:00.000Z"
        return [{"id": i, "title": t, "message": "", "date": date, "authors": []} for i, t in reversed(titles)]

    @route("POST", "/api/REPO/branch/<branch>")
    def create_branch(self, request: "Request", kind: str, name: str, branch: str):
        branches = self.find(request, kind, name, write=True).branches
        if branch in branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        branches[branch] = branches["main"]
        return {}

    def entries(self, repository: Repository, revision: str) -> dict[str, dict]:
        """What listings say of files and folders, by their paths."""
        entries: dict[str, dict] = {}
        for path, (content, lfs) in sorted(repository.commits[self.commit_of(repository, revision)].items()):
            for depth in range(1, path.count("/") + 1):
                folder = "/".join(path.split("/")[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": _oid(folder.encode(), False), "size": 0}
            entries[path] = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, False)}
            if lfs:
                entries[path]["lfs"] = {"oid": _oid(content, True), "size": len(content), "pointerSize": 130}
        return entries

    @route("GET", "/api/REPO/tree/<revision>(?:/(?P<folder>.+))?")
    def tree(self, request: "Request", kind: str, name: str, revision: str, folder: str | None = None):
        entries = self.entries(self.find(request, kind, name), revision)
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        start = f"{folder}/" if folder else ""
        deep = request.query.get("recursive", "").lower() in ("true", "1")
        return [e for p, e in entries.items() if p.startswith(start) and (deep or "/" not in p[len(start) :])]

    @route("POST", "/api/REPO/paths-info/<revision>")
    def paths_info(self, request: "Request", kind: str, name: str, revision: str):
        entries = self.entries(self.find(request, kind, name), revision)
        if "json" in request.headers.get("Content-Type", ""):
            paths = request.json()["paths"]
        else:
            paths = parse_qs(request.body.decode()).get("paths", [])
        return [entries[path] for path in paths if path in entries]

    @route("POST", "/api/REPO/preupload/<revision>")
    def preupload(self, request: "Request", kind: str, name: str, revision: str):
        repository = self.find(request, kind, name, write=True)
        present = repository.commits[self.commit_of(repository, revision)]
        answers = []
        for file in request.json()["files"]:
            lfs = file["size"] > 0 and b"\0" in base64.b64decode(file["sample"])
            answer = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": _oid(*present[file["path"]])} if file["path"] in present else {}))
        return {"files": answers}

    @route("POST", r"/(?P<kind>(?:dataset|space)s/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: "Request", name: str, **_: str):
        objects = [{"oid": item["oid"], "size": item["size"]} for item in request.json()["objects"]]
        for item in objects:
            if item["oid"] not in self.blobs:
                item["actions"] = {"upload": {"href": f"{self.address}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs/<oid>")
    def lfs_put(self, request: "Request", oid: str):
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "SHA-256 mismatch")
        self.blobs[oid] = request.body
        return Answer()

    @route("POST", "/api/REPO/commit/<revision>")
    def commit(self, request: "Request", kind: str, name: str, revision: str):
        repository = self.find(request, kind, name, write=True)
        base = self.commit_of(repository, revision)
        lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        header, files = lines[0]["value"], dict(repository.commits[base])
        if header.get("parentCommit", base) != base:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if revision not in repository.branches:
            raise Refusal(400, f"{revision} is not a branch")
        for change in lines[1:]:
            path = change["value"]["path"]
            match change["key"]:
                case "file":
                    files[path] = base64.b64decode(change["value"]["content"]), False
                case "lfsFile":
                    files[path] = self.blobs[change["value"]["oid"]], True
                case "deletedFile":
                    del files[path]
        commit = repository.commit(revision, files, header["summary"])
        url = f"{self.address}/{name}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""}

    @route("GET", "/(?:(?P<kind>dataset|space)s/)?(?P<name>[^/]+/[^/]+)/resolve/<revision>/(?P<path>.+)")
    def resolve(self, request: "Request", name: str, revision: str, path: str, kind: str | None = None):
        repository = self.find(request, kind or "model", name)
        commit = self.commit_of(repository, revision)
        if path not in repository.commits[commit]:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content, lfs = repository.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content, lfs)}"', "Accept-Ranges": "bytes"}
        if not (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))):
            return Answer(content, headers=headers)
        start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if start >= len(content):
            return Answer(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
        return Answer(content[start : end + 1], 206, headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"})

    @route("POST", "/test/faults")
    def add_fault(self, request: "Request"):
        self.faults.append(request.json())
        return {}

    @route("DELETE", "/test/faults")
    def clear_faults(self, request: "Request"):
        self.faults.clear()
        return {}

    @route("GET", "/test/REPO")
    def show(self, request: "Request", kind: str, name: str):
        return {"hardware": self.repositories[kind, name].hardware, "secrets": self.repositories[kind, name].secrets}

    @route("GET", "/test/log")
    def read_log(self, request: "Request"):
        return self.log


class Request(BaseHTTPRequestHandler):
    """One connection, whose requests go to the Hub."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # clients close theirs as they like
            self.close_connection = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        fault = None if url.path.startswith("/test/") else self.hub.fault(self.command, url.path)
        if fault and fault.get("drop"):
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            self.hub.log.append((self.command, url.path, -1))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self._read_body()
        if fault and fault.get("silent"):
            self.hub.log.append((self.command, url.path, -1))
            self.rfile.read(1)  # until the client is tired of waiting
            self.close_connection = True
            return
        try:
            if fault:
                raise Refusal(fault["status"], "as the test has ordered")
            answer = self.hub.answer("GET" if self.command == "HEAD" else self.command, url.path, self)
        except Refusal as refusal:
            content = json.dumps({"error": str(refusal)}).encode()
            answer = Answer(content, refusal.status, refusal.headers | {"Content-Type": "application/json"})
        if not url.path.startswith("/test/"):
            self.hub.log.append((self.command, url.path, answer.status))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Not to the terminal; /test/log has it."""

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def json(self) -> Any:
        return json.loads(self.body)

    def user(self, *, required: bool = False) -> tuple[str, str] | None:
        """The name and role that the token stands for; None without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if required and not token:
            raise Refusal(401, "Invalid username or password.")
        return TOKENS.get(token)


def main() -> None:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundRequest", (Request,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    print(hub.address, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
