"""A small model hub on loopback: the part of the Hugging Face Hub's HTTP that its client and `datasets` call.

Large files (safetensors, parquet) are redirected to a second host as the hub does to its CDN, where Range is served and
where a test can cut the connection.
"""

import hashlib
import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from loopback import Loopback

LARGE = (".safetensors", ".parquet")
KINDS = {"": "models", "datasets/": "datasets"}


class Hub(Loopback):
    """Repositories in memory: add(repo, folder), then `hub.url` is an HF_ENDPOINT.

    A file is named "owner/repository/file". sent: {file: bytes of its body sent}. ranges: {file: first byte asked for,
    of every request}. cuts: {file: list}; every transfer of that file takes the first entry, (bytes, "close" or
    "reset"), sends so many bytes and breaks the connection that way; with an empty list all goes well.
    """

    def __init__(self):
        self.repos, self.gates = {}, {}
        self.sent, self.ranges, self.cuts = {}, {}, {}
        super().__init__(type("Handler", (_Handler,), {"hub": self, "protocol_version": "HTTP/1.1"}))
        self.cdn = self.url.replace("127.0.0.1", "localhost")

    def add(self, repo, folder, kind="models", gate=None, commit=None):
        """Serve a folder's files as a repository; gate: None, or the token that opens it."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repos[kind, repo] = files, commit or hashlib.sha1(repo.encode()).hexdigest()
        if gate is not None:
            self.gates[kind, repo] = gate


def entry(name, content):
    """What the hub's listing says of a file."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = {"type": "file", "path": name, "size": len(content), "oid": oid}
    if name.endswith(LARGE):
        sha = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 134}
    return found


class _Handler(BaseHTTPRequestHandler):
    hub = None

    def do_GET(self):
        self._route()

    do_HEAD = do_POST = do_GET

    def _route(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if match := re.fullmatch(r"cdn/(models|datasets)/([^/]+/[^/]+)/(.+)", path):
            kind, repo, name = match.groups()
            return self._transfer(f"{repo}/{name}", self.hub.repos[kind, repo][0][name], {})
        if match := re.fullmatch(r"(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            prefix, repo, revision, name = match.groups()
            if found := self._opened(KINDS[prefix or ""], repo, revision):
                self._file(KINDS[prefix or ""], repo, *found, name)
            return None
        if match := re.fullmatch(r"api/(models|datasets)/([^/]+/[^/]+)(?:/([^/]+)(?:/([^/]+))?(?:/(.*))?)?", path):
            return self._api(*match.groups(), body)
        return self._refuse(404, "RepoNotFound", "no such page")

    def _opened(self, kind, repo, revision):
        """(files, commit) of a repository that this caller may read, else None and the refusal is sent."""
        if (kind, repo) not in self.hub.repos:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == "stale":
            return self._refuse(401, None, "Invalid credentials in Authorization header")
        gate = self.hub.gates.get((kind, repo))
        if gate is not None and (not token or token != gate):
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to {repo} is restricted.")
        files, commit = self.hub.repos[kind, repo]
        if revision not in ("main", commit):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files, commit

    def _file(self, kind, repo, files, commit, name):
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        about = entry(name, files[name])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{about["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" not in about:
            return self._transfer(f"{repo}/{name}", files[name], headers)
        headers |= {"X-Linked-ETag": f'"{about["lfs"]["oid"]}"', "X-Linked-Size": str(about["size"])}
        return self._answer(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{kind}/{repo}/{name}"})

    def _api(self, kind, repo, what, revision, folder, body):
        found = self._opened(kind, repo, revision or "main")
        if not found:
            return None
        files, commit = found
        if what in (None, "revision"):
            names = [{"rfilename": name} for name in files]
            about = {"_id": commit[:24], "id": repo, "sha": commit, "siblings": names, "private": False, "tags": []}
            return self._answer(200, json.dumps(about).encode(), {})
        if what == "tree":
            found = [entry(name, files[name]) for name in files if name.startswith(folder or "")]
        else:  # paths-info
            asked = [unquote(part.partition("=")[2]) for part in body.split("&") if part.startswith("paths=")]
            found = [entry(name, files[name]) for name in asked if name in files]
        if folder and not found:
            return self._refuse(404, "EntryNotFound", f"{folder} does not exist")
        return self._answer(200, json.dumps(found).encode(), {})

    def _transfer(self, name, content, headers):
        """The bytes of a file from where Range begins, or as many of them as the next cut lets through."""
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        if asked:
            headers = headers | {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        if self.command == "GET":
            self.hub.ranges.setdefault(name, []).append(first)
        cuts = self.hub.cuts.get(name) if self.command == "GET" else None
        return self._answer(206 if asked else 200, content[first:], headers, name, cuts.pop(0) if cuts else None)

    def _refuse(self, status, code, message, headers=None):
        about = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._answer(status, message.encode(), about | (headers or {}))

    def _answer(self, status, content, headers, name=None, cut=None):
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": len(content), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        part = content if cut is None else content[: cut[0]]
        self.wfile.write(part)
        if name:
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(part)
        if cut:
            self.close_connection = True
            if cut[1] == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
