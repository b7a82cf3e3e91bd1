"""A model hub and file server on loopback that speaks to the real client of huggingface_hub, and fails when told to.

Of the hub's protocol: the answer of /api/models (with renamed repositories redirected), /resolve with ETag,
X-Repo-Commit and, for large files, a redirect to where their content lies, with X-Linked-Etag and X-Linked-Size, and
ranges.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")  # what the real hub keeps outside of git
NOT_FOUND = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


def revision_of(files: dict[str, bytes]) -> str:
    """The commit of a repository with these files."""
    return hashlib.sha1(repr([(path, git_sha1(files[path])) for path in sorted(files)]).encode()).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """`repositories`: name -> files; `renamed`: old name -> name; `files`: path -> content, for plain downloads.

    `faults`: the end of a path -> what goes wrong there, one after the other: an HTTP status, `truncate` or `stall`
    (half of the content comes, of a rest nothing), `corrupt`, `no_range` (all of it comes, though a range was asked
    for). `asked`: (path, first byte) of each request.
    """

    def __init__(self):
        self.repositories, self.renamed, self.files = {}, {}, {}
        self.faults, self.asked, self.closing = {}, [], threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def starts(self, name: str) -> list[int]:
        """From which byte on the content of a file was asked for, request by request."""
        redirected = "/resolve/" if name.endswith(LARGE) else "/content/"
        return [start for path, start in self.asked if path.endswith(f"/{name}") and redirected not in path]

    def info(self, name: str) -> dict:
        """What the API says of a repository."""
        files = self.repositories[name]
        siblings = []
        for path, content in files.items():
            large = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            blob = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            siblings.append(blob | ({"lfs": large} if path.endswith(LARGE) else {}))
        return {"id": name, "modelId": name, "sha": revision_of(files), "private": False, "siblings": siblings}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        address = urlsplit(self.path)
        path = unquote(address.path)
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if "Range" in self.headers else 0
        self.hub.asked.append((path, start))
        if status := self.fault(path, int):
            self.answer(status, b"", {"X-Error-Message": "no"})
        elif path.startswith("/api/models/"):
            self.api(path.removeprefix("/api/models/").partition("/revision/"))
        elif "/resolve/" in path:
            self.resolve(path, start)
        elif path.startswith("/content/"):
            name, _, file = path.removeprefix("/content/").partition("//")
            self.content(path, self.hub.repositories[name][file], start)
        elif path in self.hub.files:
            self.content(path, self.hub.files[path], start)
        else:
            self.answer(404, b"")

    do_HEAD = do_GET

    def fault(self, path: str, kind: type) -> int | str | None:
        due = next((faults for end, faults in self.hub.faults.items() if path.endswith(end)), None)
        return due.pop(0) if due and isinstance(due[0], kind) else None

    def api(self, parts):
        name, _, revision = parts
        if name in self.hub.renamed:
            self.answer(307, b"", {"Location": f"/api/models/{self.hub.renamed[name]}?blobs=true"})
        elif name not in self.hub.repositories:
            self.answer(401, b'{"error": "Repository not found"}', NOT_FOUND)
        elif revision and revision != revision_of(self.hub.repositories[name]):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(200, json.dumps(self.hub.info(name)).encode(), {"Content-Type": "application/json"})

    def resolve(self, path: str, start: int):
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        content = self.hub.repositories.get(name, {}).get(file)
        if content is None or revision != revision_of(self.hub.repositories[name]):
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if not file.endswith(LARGE):
            return self.content(path, content, start, {"ETag": f'"{git_sha1(content)}"', "X-Repo-Commit": revision})
        headers = {
            "Location": f"{self.hub.url}/content/{name}//{file}", "X-Repo-Commit": revision,
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content)),
        }  # fmt: skip
        return self.answer(302, b"", headers)

    def content(self, path: str, content: bytes, start: int, headers=()):
        fault = self.fault(path, str)
        if fault == "no_range":
            start = 0
        if fault == "corrupt":
            content = bytes(255 - byte for byte in content[:100]) + content[100:]
        status = 206 if start else 200
        headers = dict(headers)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault in ("truncate", "stall"):
            self.send(status, len(content) - start, headers)
            self.wfile.write(b"" if start else content[: len(content) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.hub.closing.wait(60)
            self.close_connection = True
        else:
            self.answer(status, content[start:], headers)

    def answer(self, status: int, body: bytes, headers=()):
        self.send(status, len(body), dict(headers))
        if self.command == "GET":
            self.wfile.write(body)

    def send(self, status: int, length: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
