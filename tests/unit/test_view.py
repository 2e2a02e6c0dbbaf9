"""``profinfer view``: one file, on loopback, for the page that shows it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from builders import sample_run
from perfetto_check import check

from profinfer.cli import group, run, serving
from profinfer.cli import view as verb
from profinfer.cli.serving import UI, FileServer
from profinfer.errors import ProfinferError


def ask(
    server: FileServer, method: str = "GET", path: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    at = urlsplit(server.url)
    assert at.hostname == "127.0.0.1"
    link = http.client.HTTPConnection(at.hostname, at.port or 0, timeout=10)
    link.request(method, path or at.path, headers={"Origin": UI} | headers)
    answer = link.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    file = tmp_path / "x.pftrace"
    file.write_bytes(b"\x0a" + b"timeline" * 100_000)
    with FileServer(file, port=0) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        yield server
        server.fetched.set()
        thread.join(10)
        assert not thread.is_alive()


def test_the_page_gets_the_file_and_then_it_ends(server: FileServer, tmp_path: Path) -> None:
    status, headers, data = ask(server, "HEAD")
    assert (status, data) == (200, b"")
    assert not server.fetched.is_set()
    status, headers, data = ask(server)
    assert status == 200
    assert headers["Access-Control-Allow-Origin"] == UI
    assert data == (tmp_path / "x.pftrace").read_bytes()
    assert server.fetched.wait(5)
    assert server.link == f"{UI}/#!/?url={server.url}"


def test_a_browser_may_ask_before_it_reads_from_loopback(server: FileServer) -> None:
    status, headers, _ = ask(
        server, "OPTIONS", **{"Access-Control-Request-Private-Network": "true"}
    )
    assert status == 204
    assert headers["Access-Control-Allow-Private-Network"] == "true"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (None, {"Origin": "https://evil.example"}, 403),
        (None, {"Origin": "null"}, 403),
        (None, {"Host": "evil.example:9001"}, 403),
        ("/", {}, 404),
        ("/x.pftrace", {}, 404),
        ("/../x.pftrace", {}, 404),
    ],
)
def test_nobody_else_gets_anything(
    server: FileServer, path: str | None, headers: dict[str, str], status: int
) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        got, answered, data = ask(server, method, path, **headers)
        assert got == status
        assert "Access-Control-Allow-Origin" not in answered
        assert b"timeline" not in data
    assert not server.fetched.is_set()


def test_a_taken_port_is_one_clear_line(server: FileServer, tmp_path: Path) -> None:
    port = urlsplit(server.url).port or 0
    with pytest.raises(ProfinferError, match=f"port {port} is taken") as caught:
        FileServer(tmp_path / "x.pftrace", port)
    assert f"sport = :{port}" in (caught.value.hint or "")


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> list[FileServer]:
    """Servers of the verb, on any port; each is fetched from as soon as it runs."""
    servers: list[FileServer] = []

    class Fetched(FileServer):
        def __init__(self, path: Path) -> None:
            super().__init__(path, port=0)
            servers.append(self)

        def run(self) -> None:
            def fetch() -> None:
                self.data = ask(self)[2]

            client = threading.Thread(target=fetch)
            client.start()
            super().run()
            client.join(10)  # the server may end before its answer is read

    monkeypatch.setattr(verb, "FileServer", Fetched)
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    return servers


def test_the_verb_serves_what_export_would_write(
    free_port: list[FileServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = sample_run().builder.write(tmp_path / "t.pf")
    assert run(group, ["view", str(trace), "--no-browser", "--phase", "decode"]) == 0
    assert run(group, ["export", str(trace), "--phase", "decode"]) == 0
    written = (tmp_path / "t.pftrace").read_bytes()
    assert free_port[0].data == written  # type: ignore[attr-defined]
    assert check(written).problems == []
    said = capsys.readouterr().err
    assert f"Open {free_port[0].link}\n" in said
    assert "Fetched" in said
    assert sorted(tmp_path.iterdir()) == [trace, tmp_path / "t.pftrace"]


def test_an_export_is_served_as_it_is(
    free_port: list[FileServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    trace = sample_run().builder.write(tmp_path / "t.pf")
    assert run(group, ["export", str(trace)]) == 0
    done = tmp_path / "t.pftrace"
    assert run(group, ["view", str(done)]) == 0
    assert free_port[0].data == done.read_bytes()  # type: ignore[attr-defined]
    assert f"ssh -N -L {serving.PORT}:127.0.0.1:{serving.PORT} " in capsys.readouterr().err
    assert run(group, ["view", str(done), "--tokens", "1"]) == 2
    assert "is a timeline already" in capsys.readouterr().err


def test_a_browser_is_opened_where_there_is_a_screen(
    free_port: list[FileServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(verb.webbrowser, "open", lambda url: not opened.append(url))
    trace = sample_run().builder.write(tmp_path / "t.pf")
    assert run(group, ["view", str(trace)]) == 0
    assert run(group, ["view", str(trace), "--no-browser"]) == 0
    assert opened == [free_port[0].link]


def test_ctrl_c_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(self: FileServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FileServer, "run", pressed)
    monkeypatch.setattr(verb, "FileServer", lambda path: FileServer(path, port=0))
    trace = sample_run().builder.write(tmp_path / "t.pf")
    assert run(group, ["view", str(trace), "--no-browser"]) == 130


def test_what_is_no_trace(free_port: list[FileServer], tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    assert run(group, ["view", str(tmp_path / "x")]) == 1
    assert run(group, ["view", str(tmp_path / "none.pf")]) == 1
