"""Layer 8: one file on loopback, for ui.perfetto.dev alone, until it was fetched.

The page's own Content-Security-Policy lets it read from http://127.0.0.1:9001 and from no other
place on this machine (its tool open_trace_in_ui serves there too): the port is not ours to choose.
Nobody else is to read the file: the server answers only on 127.0.0.1, only requests that come from
that page, and only for a name that cannot be guessed.
"""

from __future__ import annotations

import errno
import http.server
import secrets
import shutil
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Self

from profinfer.errors import ProfinferError

UI = "https://ui.perfetto.dev"
HOST, PORT = "127.0.0.1", 9001


class FileServer:
    """Serves one file; a context that gives the port back.

    Attributes:
        url: of the file.
        link: of the page that opens it.
        fetched: set when the whole file was sent.
    """

    def __init__(self, path: Path, port: int = PORT) -> None:
        """Listen; nothing is answered before ``run``.

        Args:
            path: the file.
            port: where; 0 takes a free one.

        Raises:
            ProfinferError: the port is taken.
        """
        self.fetched = threading.Event()
        name = f"/{secrets.token_urlsafe(12)}.pftrace"
        try:
            self._server = http.server.ThreadingHTTPServer(
                (HOST, port), _handler(path, name, self.fetched)
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ProfinferError(f"cannot listen on {HOST}:{port}: {error.strerror}") from error
            raise ProfinferError(
                f"port {port} is taken, and {UI} reads from no other "
                "(trace_processor --httpd uses it too)",
                f"ss -ltnp 'sport = :{port}' shows by whom; or profinfer export, and open the "
                "file on the page",
            ) from error
        self.url = f"http://{HOST}:{self._server.server_address[1]}{name}"
        self.link = f"{UI}/#!/?url={self.url}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.server_close()

    def run(self) -> None:
        """Answer until the file was fetched, or Ctrl-C.

        Raises:
            KeyboardInterrupt: it was pressed.
        """
        thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            # A wait without a limit could not be interrupted on every system.
            while not self.fetched.wait(0.5):
                pass
        finally:
            self._server.shutdown()


def _handler(
    path: Path, name: str, fetched: threading.Event
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _refused(self) -> bool:
            """Answer what is not the page's request for the file."""
            host = self.headers.get("Host", "").partition(":")[0]
            if self.headers.get("Origin") != UI or host not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN, f"for {UI} only")
                return True
            if self.path != name:
                self.send_error(HTTPStatus.NOT_FOUND)
                return True
            return False

        def _head(self, status: HTTPStatus, size: int | None) -> None:
            self.send_response(status)
            self.send_header("Access-Control-Allow-Origin", UI)
            self.send_header("Vary", "Origin")
            self.send_header("Cache-Control", "no-store")
            if size is None:  # what a browser asks before a page may read from loopback
                self.send_header("Access-Control-Allow-Methods", "GET, HEAD")
                self.send_header("Access-Control-Allow-Private-Network", "true")
            else:
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Length", str(size))
            self.end_headers()

        def do_OPTIONS(self) -> None:
            if not self._refused():
                self._head(HTTPStatus.NO_CONTENT, None)

        def do_HEAD(self) -> None:
            if not self._refused():
                self._head(HTTPStatus.OK, path.stat().st_size)

        def do_GET(self) -> None:
            if self._refused():
                return
            with path.open("rb") as file:
                self._head(HTTPStatus.OK, path.stat().st_size)
                try:
                    shutil.copyfileobj(file, self.wfile)
                except (BrokenPipeError, ConnectionResetError):
                    return  # it may come again
            fetched.set()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the verb says what happened."""

    return Handler
