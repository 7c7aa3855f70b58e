"""A stand-in of the hub's API: what uploads and downloads by huggingface_hub ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

OWNER = "org"
TOKEN = "hf_PlantedToken"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LICENSES = ("apache-2.0", "mit", "other", "unknown")


class HubServer(ThreadingHTTPServer):
    """The repositories of the owner, and what was asked.

    Attributes:
        repos: The files of each repository, by its name.
        blobs: What was uploaded apart from commits, by its SHA-256.
        asked: Method and path of every request.
        failing: Paths, and the status and error that they answer with.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failing: dict[str, tuple[int, str]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run the stand-in in a thread."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        if path in self.server.failing:
            status, error = self.server.failing[path]
            self._answer(status, {"error": error})
        elif path.startswith("/blob/"):  # a presigned address needs no token
            self.server.blobs[path.removeprefix("/blob/")] = body
            self._answer(200, {})
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif self.headers.get("Authorization") not in (f"Bearer {TOKEN}", _basic()):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(**json.loads(body))
        elif match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/(\w+)/(main|{COMMIT})", path):
            self._in_repo(match[1], match[2], body)
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self._send(self.server.repos[match[1]][match[2]])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/blob/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        else:
            self._answer(404, {"error": f"no endpoint {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _create(self, name: str, organization: str, **_: Any) -> None:
        repo = f"{organization}/{name}"
        address = f"{self.server.address}/{repo}"
        if organization != OWNER:
            self._answer(403, {"error": f"You don't have the rights under {organization}"})
        elif repo in self.server.repos:
            error = "You already created this model repo"
            self._answer(409, {"error": error, "url": address})
        else:
            self.server.repos[repo] = {".gitattributes": b""}
            self._answer(200, {"url": address, "name": repo, "id": repo})

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _in_repo(self, repo: str, what: str, body: bytes) -> None:
        if repo not in self.server.repos:
            self._answer(404, {"error": "Repository not found"})
            return
        files = self.server.repos[repo]
        if what == "revision":
            self._answer(200, {"id": repo, "sha": COMMIT})
        elif what == "tree":
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in files.items()
            ]
            self._answer(200, rows)
        elif what == "preupload":
            asked = [one["path"] for one in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            answers = [
                {"path": path, "uploadMode": modes[path.endswith(".safetensors")],
                 "shouldIgnore": False, "oid": None}
                for path in asked
            ]  # fmt: skip
            self._answer(200, {"files": answers})
        else:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
            self._answer(200, {
                "success": True, "commitOid": COMMIT, "hookOutput": "",
                "commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}",
            })  # fmt: skip

    def _validate(self, content: str) -> None:
        front = yaml.safe_load(content.split("---\n")[1])
        if front["license"] in LICENSES:
            self._answer(200, {"errors": [], "warnings": []})
        else:
            message = f'"license" must be one of {", ".join(LICENSES)}'
            self._answer(400, {"errors": [{"message": message}], "error": "Invalid metadata"})


def _basic() -> str:
    return "Basic " + base64.b64encode(f"USER:{TOKEN}".encode()).decode()
