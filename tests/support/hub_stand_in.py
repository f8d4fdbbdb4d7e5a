"""A hub on loopback: it takes what huggingface_hub uploads, and keeps it."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """repositories: id to {path: bytes}; private: id to what it was made as; tokens: those seen."""

    def __init__(self, token):
        self.token, self.repositories, self.private, self.tokens = token, {}, {}, set()


@contextmanager
def running(token):
    """(address, Hub) of a hub that lets this token write."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, values, status=200):
            body = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def allowed(self):
            given = self.headers.get("Authorization", "")
            hub.tokens.add(given.removeprefix("Bearer "))
            return given == f"Bearer {hub.token}"

        def body(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self):
            if not self.allowed():
                return self.answer({"error": "Invalid username or password."}, 401)
            self.answer(
                {"id": "/".join(self.path.split("/")[3:5]), "sha": "0" * 40, "siblings": []}
            )

        do_HEAD = do_GET

        def do_POST(self):
            body = self.body()
            if not self.allowed():
                return self.answer({"error": "Invalid username or password."}, 401)
            path = self.path.split("?")[0]
            if path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
                hub.repositories.setdefault(name, {})
                hub.private.setdefault(name, wanted.get("visibility") == "private")
                kind = "datasets/" if wanted.get("type") == "dataset" else ""
                return self.answer({"url": f"http://{self.headers['Host']}/{kind}{name}"})
            name = "/".join(path.split("/")[3:5])
            if "/preupload/" in path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        content = base64.b64decode(value["content"])
                        hub.repositories[name][value["path"]] = content
                address = f"http://{self.headers['Host']}/{name}/commit/{'0' * 40}"
                return self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": address})
            self.answer({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
