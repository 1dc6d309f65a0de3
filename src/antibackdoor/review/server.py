"""The web server of a review: one person, one machine, one run."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from antibackdoor.errors import ConfigError, RunError
from antibackdoor.review.page import ReviewPage

HOST = "127.0.0.1"  # the loopback address: no other machine reaches it

_TOKEN_BYTES = 32
_MOST_BYTES = 64 * 2**20  # of a request: the rows of a group of some million samples
_PATIENCE_SECONDS = 30  # for a request that does not come


class ReviewServer(ThreadingHTTPServer):
    """Serves one review until `finish` is called or the process ends.

    Attributes:
        url: Where the page is. It holds a secret: whoever knows it may decide.
    """

    daemon_threads = True
    allow_reuse_address = False  # on Windows another program could listen to the same port

    def __init__(self, page: ReviewPage, port: int = 0) -> None:
        """Listen on the loopback address.

        Raises:
            ConfigError: The port is taken, or is none.
        """
        self.page, self.token = page, secrets.token_urlsafe(_TOKEN_BYTES)
        try:
            ThreadingHTTPServer.__init__(self, (HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"cannot listen on port {port} of {HOST} ({error}); give another --port, or none"
            ) from error
        self.url = f"http://{HOST}:{self.server_port}/{self.token}/"

    @property
    def names(self) -> tuple[str, ...]:
        """What a browser may call this server. Any other name was led here by an attacker (DNS rebinding)."""
        return (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")

    def finish(self) -> None:
        """Stop serving, from within a request."""
        threading.Thread(target=self.shutdown, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    """One request. Everything that does not carry the token is answered alike: there is nothing here."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "antibackdoor", ""
    timeout = _PATIENCE_SECONDS
    server: ReviewServer

    def do_GET(self) -> None:
        """The page, and the suspects of a group."""
        path, query = self._allowed()
        if path is None:
            return
        page = self.server.page
        if path == "":
            self._answer(HTTPStatus.OK, page.html(), "text/html", page.policy)
        elif path == "cards":
            try:
                group, start = (int(query[name][0]) for name in ("group", "from"))
                text = page.cards(group, start)
            except (KeyError, ValueError, IndexError, RunError):
                self._answer(HTTPStatus.NOT_FOUND, "there is no such group")
                return
            self._answer(HTTPStatus.OK, text, "text/html")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        """Decisions."""
        path, _ = self._allowed()
        if path is None:
            return
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{name}" for name in self.server.names]:
            self._refuse(HTTPStatus.FORBIDDEN, "another page must not decide")
            return
        try:
            self._json(HTTPStatus.OK, self._decided(path, self._body()))
        except RunError as error:
            self._json(HTTPStatus.CONFLICT, {"error": str(error)})
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _decided(self, path: str, said: Mapping[str, Any]) -> dict[str, Any]:
        page = self.server.page
        decision = said.get("decision")
        if path == "decide" and isinstance(decision, str):
            rows = said.get("rows")
            if isinstance(rows, list) and all(type(row) is int for row in rows):
                return page.decide(rows, decision)
            if type(said.get("group")) is int:
                return page.decide_group(said["group"], decision)
        if path == "undo":
            return page.undo()
        if path == "finish":
            self.server.finish()
            self.close_connection = True
            return {}
        raise ValueError("there is no such request")

    def _allowed(self) -> tuple[str | None, dict[str, list[str]]]:
        """The path below the token, and the query; None once the request has been refused."""
        parts = urlsplit(self.path)
        token, _, path = parts.path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if self.headers.get("Host") not in self.server.names or not known:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
            return None, {}
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._refuse(HTTPStatus.FORBIDDEN, "another page must not ask")
            return None, {}
        return path, parse_qs(parts.query)

    def _body(self) -> Mapping[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise ValueError("send JSON")
        length = int(self.headers.get("Content-Length", ""))
        if not 0 <= length <= _MOST_BYTES:
            raise ValueError("send less")
        try:
            said = json.loads(self.rfile.read(length))
        except RecursionError as error:
            raise ValueError("send less") from error
        if not isinstance(said, dict):
            raise ValueError("send an object")
        return said

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # what follows of the request is not read
        self._answer(status, text)

    def _json(self, status: HTTPStatus, values: Mapping[str, Any]) -> None:
        self._answer(status, json.dumps(values), "application/json")

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain", policy: str = "") -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy or "default-src 'none'; frame-ancestors 'none'; sandbox",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address holds the token."""
