"""A local stand-in for the Hub: enough of its HTTP API for create_repo, upload_folder, create_commit, model and dataset
info, tree and resolve (download). Files are kept in memory, one commit per push; weights and parquet go through git-lfs
("basic" transfer), the rest inline.

    with FakeHub() as hub:
        env = hub.env(hf_home)          # HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_DISABLE_XET for a sub-process
HF_ENDPOINT is read when huggingface_hub is imported, so run the client in a fresh process.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FakeHub:
    """Knows the tokens "hf_fake", which may write, and "hf_read"; whoever has none may read."""

    def __init__(self):
        self.repos = {}  # (type, id) -> {"commits": [(sha, {path: bytes})], "private": bool}
        self.log = []
        self.blobs = {}  # sha256 -> bytes, from LFS uploads
        self.is_broken = False  # refuse the files of uploads
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def reply(self, code, body=b"", headers=None, head=False):
                if isinstance(body, (dict, list)):
                    body = json.dumps(body).encode()
                self.send_response(code)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
                for k, v in headers.items():
                    self.send_header(k, v)
                self.end_headers()
                if not head:
                    self.wfile.write(body)
                hub.log.append((self.command, self.path, code))

            def missing(self, what, head=False):
                self.reply(404, {"error": what}, {"X-Error-Code": what, "X-Error-Message": what}, head)

            def role(self):
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                return {"hf_fake": "write", "hf_read": "read"}.get(token)

            def do_HEAD(self):
                self.download(True)

            def do_GET(self):
                path = unquote(urlsplit(self.path).path).strip("/").split("/")
                if path[:1] != ["api"]:
                    return self.download(False)
                if path[1] == "whoami-v2":
                    if self.role() is None:
                        return self.reply(401, {"error": "Invalid username or password."})
                    auth = {"type": "access_token", "accessToken": {"role": self.role()}}
                    user = {"name": "tester", "type": "user", "orgs": [], "auth": auth}
                    return self.reply(200, user)
                kind = path[1].rstrip("s")
                repo = hub.repos.get((kind, "/".join(path[2:4])))
                if repo is None:
                    return self.missing("RepoNotFound")
                rest = path[4:]
                sha, files = hub.at(repo, rest[1] if len(rest) > 1 else "main")
                if rest[:1] == ["tree"]:
                    under = "/".join(rest[2:])
                    entries = hub.entries(files, under, "recursive=true" in self.path.lower())
                    return self.reply(200, entries) if entries or not under else self.missing("EntryNotFound")
                self.reply(200, {
                    "_id": "x", "id": "/".join(path[2:4]), "modelId": "/".join(path[2:4]), "sha": sha, "private": False,
                    "disabled": False, "gated": False, "downloads": 0, "likes": 0, "tags": [],
                    "createdAt": "2026-01-01T00:00:00.000Z", "lastModified": "2026-01-01T00:00:00.000Z",
                    "siblings": [{"rfilename": p} for p in sorted(files)],
                    **hub.card_fields(files),
                })

            def do_POST(self):
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else self.chunks()
                path = unquote(urlsplit(self.path).path).strip("/").split("/")
                if self.role() != "write" and "paths-info" not in path:
                    return self.reply(401, {"error": "Invalid username or password."})
                if path == ["api", "repos", "create"]:
                    data = json.loads(body)
                    owner = data.get("organization") or "tester"
                    key = (data.get("type") or "model", f"{owner}/{data['name']}")
                    url = f"{hub.endpoint}/{'' if key[0] == 'model' else key[0] + 's/'}{key[1]}"
                    if key in hub.repos:
                        return self.reply(409, {"error": "exists", "url": url})
                    is_private = data.get("private") or data.get("visibility") == "private"  # as huggingface_hub 1 or 2
                    hub.repos[key] = {"commits": [hub.commit({".gitattributes": b""})], "private": is_private}
                    return self.reply(200, {"url": url, "name": key[1], "id": "x"})
                if path == ["api", "validate-yaml"]:
                    return self.reply(200, {"errors": [], "warnings": []})
                if path[-4:] == ["info", "lfs", "objects", "batch"] or path[-3:] == ["lfs", "objects", "batch"]:
                    return self.reply(200, {"transfer": "basic", "objects": [
                        {"oid": o["oid"], "size": o["size"], "authenticated": True,
                         **({} if o["oid"] in hub.blobs else
                            {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{o['oid']}", "header": {}}}})}
                        for o in json.loads(body)["objects"]
                    ]}, {"Content-Type": "application/vnd.git-lfs+json"})
                repo = hub.repos.get((path[1].rstrip("s"), "/".join(path[2:4])))
                if repo is None:
                    return self.missing("RepoNotFound")
                if path[4] == "preupload":
                    return self.reply(200, {"files": [
                        {"path": f["path"], "uploadMode": hub.mode(f["path"]), "shouldIgnore": False, "oid": None}
                        for f in json.loads(body)["files"]
                    ]})
                if path[4] == "paths-info":
                    wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
                    _, files = hub.at(repo, path[5] if len(path) > 5 else "main")
                    known = {e["path"]: e for e in hub.entries(files, "", True)}
                    return self.reply(200, [known[p] for p in wanted if p in known])
                if path[4] == "commit":
                    files = dict(repo["commits"][-1][1])
                    for line in body.splitlines():
                        item = json.loads(line)
                        value = item["value"]
                        if item["key"] == "file":
                            files[value["path"]] = base64.b64decode(value["content"])
                        elif item["key"] == "lfsFile":
                            files[value["path"]] = hub.blobs[value["oid"]]
                        elif item["key"] == "deletedFile":
                            files.pop(value["path"], None)
                    repo["commits"].append(hub.commit(files))
                    sha = repo["commits"][-1][0]
                    url = f"{hub.endpoint}/{'/'.join(path[2:4])}/commit/{sha}"
                    return self.reply(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})
                self.missing("EntryNotFound")

            def do_PUT(self):
                size = int(self.headers.get("Content-Length") or 0)
                data = self.rfile.read(size) if size else self.chunks()
                if hub.is_broken:
                    self.close_connection = True  # without a word, as a network does
                    return
                hub.blobs[self.path.rsplit("/", 1)[1]] = data
                self.reply(200, b"")

            def chunks(self):
                out = b""
                while n := int(self.rfile.readline().strip() or b"0", 16):
                    out += self.rfile.read(n)
                    self.rfile.readline()
                return out

            def download(self, head):
                path = unquote(urlsplit(self.path).path).strip("/").split("/")
                kind = "model"
                if path[0] in ("datasets", "spaces"):
                    kind = path.pop(0).rstrip("s")
                repo = hub.repos.get((kind, "/".join(path[:2])))
                if repo is None:
                    return self.missing("RepoNotFound", head)
                if len(path) < 4 or path[2] != "resolve":
                    return self.missing("EntryNotFound", head)
                sha, files = hub.at(repo, path[3])
                data = files.get("/".join(path[4:]))
                if data is None:
                    return self.reply(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}, head)
                headers = {
                    "X-Repo-Commit": sha,
                    "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                    "Accept-Ranges": "bytes",
                    "Content-Type": "application/octet-stream",
                }
                wanted = self.headers.get("Range")
                if wanted and not head:
                    a, b = wanted.removeprefix("bytes=").split("-")
                    a, b = int(a), int(b) if b else len(data) - 1
                    part = data[a : b + 1]
                    headers["Content-Range"] = f"bytes {a}-{a + len(part) - 1}/{len(data)}"
                    return self.reply(206, part, headers)
                self.reply(200, data, headers, head)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def card_fields(self, files):
        """pipeline(model=...) without a task asks the Hub for what stands in the card."""
        text = files.get("README.md", b"").decode()
        fields = {}
        if text.startswith("---"):
            for line in text.split("---")[1].splitlines():
                for key in ("pipeline_tag", "library_name"):
                    if line.startswith(key + ":"):
                        fields[key] = line.split(":", 1)[1].strip()
        return fields

    def mode(self, path):
        return "lfs" if path.endswith((".parquet", ".safetensors", ".bin", ".arrow")) else "regular"

    def entries(self, files, under, recursive):
        found = {}
        for path, data in sorted(files.items()):
            if under and not path.startswith(under + "/"):
                continue
            rest = path[len(under) + 1 if under else 0 :].split("/")
            for depth in range(1, len(rest)):
                folder = "/".join(filter(None, [under, *rest[:depth]]))
                if depth == 1 or recursive:
                    found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            if len(rest) == 1 or recursive:
                found[path] = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        return list(found.values())

    def commit(self, files):
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest(), files

    def at(self, repo, revision):
        for sha, files in repo["commits"]:
            if sha == revision:
                return sha, files
        return repo["commits"][-1]

    def env(self, hf_home):
        """Environment of a process that takes this for the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": "hf_fake",
            "HF_HOME": str(hf_home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()
