"""A small Hub on the loopback: what huggingface_hub and diffusers ask for to create, upload, look at and download.

Two users: the token hf_ann is ann's, hf_bob is bob's. Everything is kept in memory.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKENS = {"hf_ann": "ann", "hf_bob": "bob"}
LARGE = (".safetensors", ".png")  # uploaded as LFS objects


class Refusal(Exception):
    """An answer that is an error: status, the Hub's code for it, message, and the address of what is there already."""


class FakeHub:
    """`with FakeHub() as hub`: an empty Hub at `hub.url`.

    Attributes:
        repositories: name -> {"private": bool, "commits": {sha: {path: oid}}, "head": sha}
        blobs: oid -> bytes
        asked: (method, path) of every request
        resumed: path -> the first byte asked for, of transfers that go on
        breaks: end of a path -> how many of the next transfers of such files break off in the middle; of those that
            begin after the first byte, at once
    """

    def __enter__(self):
        self.repositories, self.blobs, self.asked, self.breaks, self.resumed = {}, {}, [], {}, {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def answer(self):
                path = unquote(urlsplit(self.path).path)
                hub.asked.append((self.command, path))
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                user = TOKENS.get((self.headers.get("authorization") or "").removeprefix("Bearer "))
                try:
                    status, headers, content = hub.answer(self.command, path, body, user)
                except Refusal as refusal:
                    status, code, message, *url = refusal.args
                    headers = {"X-Error-Code": code, "X-Error-Message": message}
                    content = {"error": message, **({"url": url[0]} if url else {})}
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                start = int((self.headers.get("range") or "bytes=0-")[len("bytes=") :].partition("-")[0])
                if start and status == 200:
                    hub.resumed[path] = start
                    status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(data) - start)}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                broken = hub.breaking(path)
                self.wfile.write(data[start : len(data) // 2 if broken else None])
                self.close_connection |= broken

            do_GET = do_HEAD = do_POST = do_PUT = answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def breaking(self, path: str) -> bool:
        """Whether this transfer breaks off."""
        for end, left in self.breaks.items():
            if path.endswith(end) and left:
                self.breaks[end] -= 1
                return True
        return False

    def files(self, name: str) -> dict[str, bytes]:
        """What a repository holds now."""
        repository = self.repositories[name]
        return {path: self.blobs[oid] for path, oid in repository["commits"][repository["head"]].items()}

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> None:
        """Make a repository, or replace what it holds."""
        repository = self.repositories.setdefault(name, {"private": private, "commits": {}})
        self._commit(repository, {path: self._store(data) for path, data in files.items()})

    def _store(self, data: bytes) -> str:
        oid = hashlib.sha256(data).hexdigest()
        self.blobs[oid] = data
        return oid

    def _commit(self, repository: dict, tree: dict) -> str:
        count = len(repository["commits"])
        sha = hashlib.sha1(json.dumps([count, sorted(tree.items())]).encode()).hexdigest()
        repository["commits"][sha] = tree
        repository["head"] = sha
        return sha

    def _open(self, name: str, user: str | None, write: bool = False) -> dict:
        repository = self.repositories.get(name)
        owner = name.partition("/")[0]
        if repository is None or (repository["private"] and user != owner):
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise Refusal(403, "", "You don't have the rights to write to this repository")
        return repository

    def answer(self, method: str, path: str, body: bytes, user: str | None) -> tuple[int, dict, object]:
        """Status, headers and content."""
        repository = r"/api/models/([^/]+/[^/]+)"
        routes = [
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", lambda body, user: {"errors": [], "warnings": []}),
            (rf"{repository}/auth-check(/write)?", self._auth_check),
            (rf"{repository}/preupload/[^/]+", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/_lfs/([0-9a-f]+)(/verify)?", self._lfs),
            (rf"{repository}/commit/[^/]+", self._commit_files),
            (rf"{repository}/tree/([^/]+)", self._tree),
            (rf"{repository}(?:/revision/([^/]+))?", self._info),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ]
        for pattern, handler in routes:
            if match := re.fullmatch(pattern, path):
                answer = handler(*match.groups(), body, user)
                return answer if isinstance(answer, tuple) else (200, {}, answer)
        raise Refusal(404, "", f"no such route: {method} {path}")

    def _create(self, body, user):
        wish = json.loads(body)
        if user is None:
            raise Refusal(401, "", "Invalid username or password.")
        owner = wish.get("organization") or user
        if owner != user:
            raise Refusal(403, "", f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{wish['name']}"
        if name in self.repositories:
            raise Refusal(409, "", "You already created this model repo", f"{self.url}/{name}")
        self.put(name, {}, bool(wish.get("private") or wish.get("visibility") == "private"))
        return {"url": f"{self.url}/{name}", "name": name, "id": name}

    def _auth_check(self, name, write, body, user):
        self._open(name, user, bool(write))
        return {}

    def _preupload(self, name, body, user):
        self._open(name, user, write=True)
        mode = {True: "lfs", False: "regular"}
        return {
            "files": [
                {"path": file["path"], "uploadMode": mode[file["path"].endswith(LARGE)], "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
        }

    def _lfs_batch(self, name, body, user):
        self._open(name, user, write=True)
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.url}/_lfs/{item['oid']}"}}
            missing = item["oid"] not in self.blobs
            objects.append({"oid": item["oid"], "size": item["size"], **({"actions": upload} if missing else {})})
        return {"transfer": "basic", "objects": objects}

    def _lfs(self, oid, verify, body, user):
        if self.breaking("/_lfs"):
            raise Refusal(500, "", "Internal Server Error")
        if not verify:
            assert self._store(body) == oid
        return {}

    def _commit_files(self, name, body, user):
        repository = self._open(name, user, write=True)
        tree = dict(repository["commits"][repository["head"]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                tree[line["value"]["path"]] = self._store(base64.b64decode(line["value"]["content"]))
            elif line["key"] == "lfsFile":
                tree[line["value"]["path"]] = line["value"]["oid"]
        sha = self._commit(repository, tree)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{name}/commit/{sha}", "hookOutput": ""}

    def _at(self, name, revision, user):
        repository = self._open(name, user)
        sha = repository["head"] if revision in (None, "main") else revision
        if sha not in repository["commits"]:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, sha, repository["commits"][sha]

    def _entry(self, path, oid):
        entry = {"type": "file", "path": path, "size": len(self.blobs[oid]), "oid": oid[:40]}
        lfs = {"oid": oid, "size": len(self.blobs[oid]), "pointerSize": 134}
        return entry | ({"lfs": lfs} if path.endswith(LARGE) else {})

    def _tree(self, name, revision, body, user):
        return [self._entry(*file) for file in sorted(self._at(name, revision, user)[2].items())]

    def _info(self, name, revision, body, user):
        repository, sha, tree = self._at(name, revision, user)
        return {
            "_id": "0", "id": name, "modelId": name, "sha": sha, "private": repository["private"], "gated": False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path} for path in sorted(tree)],
        }  # fmt: skip

    def _resolve(self, name, revision, path, body, user):
        _, sha, tree = self._at(name, revision, user)
        if path not in tree:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{tree[path]}"', "Accept-Ranges": "bytes"}
        return 200, headers, self.blobs[tree[path]]
