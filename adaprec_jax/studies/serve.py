"""A page that follows a study, served to this machine alone.

It answers GET for four names and nothing else: the page, its style, its script, and
`/data`, which is what `adaprec_jax.studies.live` has to tell. No path is ever looked
for on the disk. A page of somebody else could have its own name point to this machine
(DNS rebinding), so a request that was sent to another name than this machine's is
refused. Imports no JAX.
"""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from adaprec_jax.runs.errors import InputError
from adaprec_jax.studies.live import Live

ADDRESS = "127.0.0.1"
_NAMES = ("localhost", "127.0.0.1", "[::1]")
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_IDLE = 10.0  # seconds that a silent connection is kept


def server(live: Live, port: int) -> ThreadingHTTPServer:
    """Returns what serves the page once `serve_forever` is called.

    Args:
        live: The study.
        port: Of this machine; 0 is any that is free, which `server_port` names.

    Raises:
        InputError: The port cannot be had.
    """
    folder = resources.files("adaprec_jax.report") / "templates"
    files = {
        f"/{'' if kind == 'html' else f'live.{kind}'}": (
            f"{mime}; charset=utf-8",
            (folder / f"live.{kind}").read_bytes(),
        )
        for kind, mime in _KINDS.items()
    }

    class Handler(_Handler):
        """Knows the study and the files."""

        study, known = live, files

    try:
        return _Server((ADDRESS, port), Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise InputError(
            f"Cannot listen on port {port} of {ADDRESS}: {reason}; choose another with "
            "--port, or 0 for any."
        ) from error


def is_this_machine(hosts: list[str]) -> bool:
    """Returns whether a request names this machine, by its `Host` headers.

    >>> is_this_machine(["localhost:8642"]), is_this_machine(["evil.example"])
    (True, False)
    """
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].strip().lower().rpartition(":")
    if not (colon and port.isascii() and port.isdecimal()):
        name = hosts[0].strip().lower()
    return name in _NAMES


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a page that was closed while it was answered is no fault."""


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "adaprec", ""
    timeout = _IDLE
    study: Live
    known: dict[str, tuple[str, bytes]]

    def do_GET(self) -> None:
        """Answers one of the names."""
        if not is_this_machine(self.headers.get_all("Host", [])):
            self._send(HTTPStatus.FORBIDDEN, "This page is for this machine alone.")
            return
        # Not as a URL: "//x" would be a host, and "http://x/" another server's page.
        path, _, query = self.path.partition("?")
        if path == "/data":
            self._tell(query)
        elif path in self.known:
            kind, content = self.known[path]
            self._send(HTTPStatus.OK, content, kind)
        else:
            self._send(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _tell(self, query: str) -> None:
        try:
            given = parse_qs(query, max_num_fields=8)
            first = {name: values[0] for name, values in given.items()}
            after, seen = (int(first.get(name, "0")) for name in ("after", "seen"))
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, "after and seen are numbers of looks.")
            return
        told = self.study.tell(
            first.get("session", ""), after, first.get("run", ""), seen
        )
        text = json.dumps(told, separators=(",", ":"), allow_nan=False)
        self._send(HTTPStatus.OK, text, "application/json")

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET is answered.")

    # Named by the library.
    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _send(
        self, status: HTTPStatus, content: str | bytes, kind: str = "text/plain"
    ) -> None:
        whole = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(whole)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name)
        """Says nothing of a request."""
