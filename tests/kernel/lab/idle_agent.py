"""An agent that says all is well and does nothing: what the lab must not fall for."""

from __future__ import annotations

import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

PATH = next(word for word in sys.argv if word.startswith("--config=")).partition("=")[2]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        text = "".join(file.read_text() for file in sorted(Path(PATH, "..data").iterdir()))
        bad = any(line.endswith("1/8") for line in text.splitlines())
        status = {
            "mode": "iptables-nft",
            "ready": not bad,
            "waiting": [],
            "changes": time.monotonic_ns(),
            "config": {
                "revision": str(hash(text)),
                "accepted": not bad,
                "error": "refused" if bad else None,
            },
        }
        body = json.dumps(status).encode()
        self.send_response(200)
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


socketserver.UnixStreamServer(os.environ["IPMASQ_SOCKET"], Handler).serve_forever()
