"""A chat endpoint on loopback for tests: /v1/chat/completions, and whatever trouble a test asks
for."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def say(verdict, **more):
    return json.dumps({"reason": "because", "verdict": verdict, **more})


def longer(a, b):
    """A judge who goes by length."""
    return say("tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B")


class Server:
    """speak(a, b) -> what the model says; before(number, payload) -> None, or (status, headers,
    body) to answer instead, or 'drop'."""

    def __init__(
        self, speak=longer, before=lambda number, payload: None, delay=0.0, usage=(100, 10)
    ):
        self.speak, self.before, self.delay, self.usage = speak, before, delay, usage
        self.payloads, self.keys, self.flying, self.most_flying, self.answered = [], [], 0, 0, 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.flying += 1
                    outer.most_flying = max(outer.most_flying, outer.flying)
                    outer.payloads.append((self.path, payload))
                    outer.keys.append(self.headers.get("Authorization"))
                    number = len(outer.payloads)
                try:
                    time.sleep(outer.delay)
                    instead = outer.before(number, payload)
                finally:
                    with outer.lock:
                        outer.flying -= 1
                if instead == "drop":
                    self.close_connection = True
                    self.connection.close()
                    return
                status, headers, body = instead or (200, {}, outer.completion(payload))
                outer.answered += status == 200
                data = body.encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    pass  # the client gave up

        class Quiet(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 64

            def handle_error(self, *_):
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def completion(self, payload):
        said = self.speak(*shown_in(payload))
        usage = (
            {"usage": dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))}
            if self.usage
            else {}
        )
        return json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": said}}],
                **usage,
            }
        )

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def shown_in(payload):
    """The two completions of a request, as the judge sees them."""
    text = payload["messages"][1]["content"]
    return [
        re.search(rf"<answer {side} (\w+)>\n(.*)\n</answer {side} \1>", text, re.DOTALL)[2]
        for side in "AB"
    ]
