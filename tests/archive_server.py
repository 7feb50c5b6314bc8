"""A server of one file that cuts, forgets, changes and lies as real ones do, for tests of downloads."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ARCHIVE = "cifar-100-python.tar.gz"


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content` as the server's attributes say, and remembers what was asked."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        server.conditions.append(self.headers.get("If-Range"))
        if server.answers and (code := server.answers.pop(0)) != 200:
            self.send_error(code)
            return
        first = self.first_byte()
        body = server.content[first:]
        if first and not body:
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        for name, value in server.headers.items():
            self.send_header(name, value)
        if server.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(body)
        self.wfile.write(body[:cut])
        while server.hangs:
            time.sleep(0.01)

    def first_byte(self):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked or not self.server.resumes:
            return 0
        tag = self.headers.get("If-Range")
        if tag and self.server.heeds_if_range and tag not in self.server.headers.values():
            return 0
        return int(asked[1])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.headers = content, {"ETag": '"one"'}
        self.ranges, self.conditions = [], []
        self.answers, self.cuts, self.hangs = [], [], False
        self.resumes, self.heeds_if_range, self.tells_length = True, True, True

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.hangs = False
        self.shutdown()
        super().__exit__(*error)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/{ARCHIVE}"
