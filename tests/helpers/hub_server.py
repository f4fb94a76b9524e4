"""A server on 127.0.0.1 that replaces the Hugging Face Hub in tests, with model repositories for the Hub's client."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

# Smallest size in bytes of files that the client must upload by the protocol of Git LFS.
LFS_BYTES = 10_000


class Hub:
    """The repositories on the server, and the requests that it received.

    Attributes:
        url: address of the server, for `HF_ENDPOINT`.
        branches: commits by repository and branch, {repository: {branch: commit}}.
        commits: files by commit, {commit: {path: content}}.
        private: names of the private repositories.
        asked: methods and paths of all requests, in order.
    """

    def __init__(self, url):
        self.url, self.branches, self.commits, self.private, self.asked = url, {}, {}, set(), []
        self.objects = {}

    def files(self, repository, revision="main"):
        """Returns the files of a branch or commit by path, or None if there is no such revision."""
        commit = self.branches.get(repository, {}).get(revision, revision)
        return self.commits.get(commit)

    def commit(self, repository, files, branch="main"):
        """Makes a commit that holds exactly these files, on a branch; returns the commit's name."""
        name = hashlib.sha1(repr((repository, branch, sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches.setdefault(repository, {})[branch] = name
        return name


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    def log_message(self, *arguments):
        pass

    def answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        self.hub.asked.append((self.command, self.path))
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", urllib.parse.urlparse(self.path).path)
        if not found:
            return self.answer(404, {"error": "no such page"})
        repository, revision, name = map(urllib.parse.unquote, found.groups())
        files = self.hub.files(repository, revision)
        if repository not in self.hub.branches:
            return self.answer(404, {"error": "no repository"}, X_Error_Code="RepoNotFound")
        if files is None:
            return self.answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        commit = self.hub.branches[repository].get(revision, revision)
        if name not in files:
            return self.answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = files[name]
        digest = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit=commit, Accept_Ranges="bytes")

    do_HEAD = do_GET

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self):
        self.hub.asked.append((self.command, self.path))
        content = self.body()
        if hashlib.sha256(content).hexdigest() != self.path.rpartition("/")[2]:
            return self.answer(400, {"error": "another digest"})
        self.hub.objects[self.path.rpartition("/")[2]] = content
        return self.answer(200)

    def do_POST(self):
        self.hub.asked.append((self.command, self.path))
        body, path = self.body(), urllib.parse.unquote(self.path)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if not found or found[1] not in self.hub.branches:
            return self.answer(404, {"error": "no such page"}, X_Error_Code="RepoNotFound")
        repository, what, revision = found.groups()
        if what == "branch":
            branches = self.hub.branches[repository]
            if revision in branches:
                return self.answer(409, {"error": "the branch exists"})
            branches[revision] = branches["main"]
            return self.answer(200, {})
        if what == "preupload":
            files = json.loads(body)["files"]
            modes = [(one["path"], "lfs" if one["size"] >= LFS_BYTES else "regular") for one in files]
            named = [{"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None} for name, mode in modes]
            return self.answer(200, {"files": named})
        files = dict(self.hub.files(repository, revision))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.commit(repository, files, revision)
        url = f"{self.hub.url}/{repository}/commit/{commit}"
        return self.answer(200, {"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def create(self, asked):
        repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
        exists = repository in self.hub.branches
        if not exists:
            self.hub.commit(repository, {".gitattributes": b""})
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(repository)
        url = f"{self.hub.url}/{repository}"
        return self.answer(409 if exists else 200, {"url": url, "name": repository, "id": repository})


@contextlib.contextmanager
def hub_server():
    """Yields the `Hub` of a server that runs in a thread inside the context."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
