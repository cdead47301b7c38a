"""Downloads from a server on this machine that can be made to misbehave."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import metaopt as mo
from metaopt.errors import ArgumentError, DataError

NAME = "images_background.zip"


class Server(ThreadingHTTPServer):
    """Serves ``content``; breaks the connection ``breaks`` times, half way through what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.asked = b"", True, []
        self.breaks, self.failures, self.status = 0, 0, 0

    @property
    def mirror(self) -> mo.tasks.Mirror:
        url = f"http://127.0.0.1:{self.server_address[1]}/python"
        return mo.tasks.Mirror(url, {NAME: hashlib.md5(self.content).hexdigest()})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        body = server.content[start:]
        status = 206 if start else 200
        if self.path != f"/python/{NAME}":
            status, body = 404, b""
        elif server.failures:
            server.failures -= 1
            status, body = 503, b""
        elif start and not body:
            status = 416
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def server(
    tmp_path: Path, make_archive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("metaopt.tasks._download._BLOCK", 1 << 12)
    (tmp_path / "origin").mkdir()
    with Server() as server:
        path = make_archive(tmp_path / "origin" / NAME, {"Greek": list(range(1, 9))}, drawers=20)
        server.content = path.read_bytes()
        assert len(server.content) > 1 << 14, "several blocks"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(root: Path, mirror: mo.tasks.Mirror) -> int:
    return mo.tasks.omniglot(root, "lake", rotations=False, download=mirror).num_classes


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_fresh_download_and_none_after_it(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    assert fetch(root, server.mirror) == 8
    assert names(root) == [NAME]
    assert (root / NAME).read_bytes() == server.content
    assert fetch(root, server.mirror) == 8
    assert server.asked == [None]


def test_a_broken_connection_is_resumed_by_range(server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    assert fetch(tmp_path / "root", server.mirror) == 8
    size = len(server.content)
    half = size // 2
    assert server.asked == [None, f"bytes={half}-", f"bytes={half + (size - half) // 2}-"]
    assert (tmp_path / "root" / NAME).read_bytes() == server.content


def test_a_connection_that_stays_broken_leaves_a_part_for_the_next_call(
    server: Server, tmp_path: Path
) -> None:
    server.breaks = 3
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"omniglot\(download\): expected the whole file, got .*Call again"):
        fetch(root, server.mirror)
    assert names(root) == [f"{NAME}.part"]
    have = (root / f"{NAME}.part").stat().st_size
    assert fetch(root, server.mirror) == 8
    assert server.asked[-1] == f"bytes={have}-"
    assert names(root) == [NAME]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.breaks = False, 1
    assert fetch(tmp_path / "root", server.mirror) == 8
    assert server.asked == [None, f"bytes={len(server.content) // 2}-"]
    assert (tmp_path / "root" / NAME).read_bytes() == server.content


def test_a_whole_part_only_needs_its_name(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{NAME}.part").write_bytes(server.content)
    assert fetch(root, server.mirror) == 8
    assert names(root) == [NAME]


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    root, mirror = tmp_path / "root", server.mirror
    server.content = server.content[:-1] + b"?"
    with pytest.raises(DataError, match=r"expected MD5 [0-9a-f]{32}, got [0-9a-f]{32} at http"):
        fetch(root, mirror)
    assert names(root) == []


def test_a_part_of_another_file_is_found_out_and_removed(server: Server, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / f"{NAME}.part").write_bytes(b"something else")
    with pytest.raises(DataError, match="expected MD5"):
        fetch(root, server.mirror)
    assert names(root) == []
    assert fetch(root, server.mirror) == 8


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    server.failures = 2
    assert fetch(tmp_path / "root", server.mirror) == 8
    assert server.asked == [None] * 3
    wrong = server.mirror._replace(base_url=server.mirror.base_url + "/elsewhere")
    with pytest.raises(DataError, match=r"expected the file, got 'HTTP Error 404"):
        fetch(tmp_path / "other", wrong)
    assert len(server.asked) == 4


def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        mirror = server.mirror
    with pytest.raises(DataError, match=r"expected the whole file, got .*at http://127.0.0.1"):
        fetch(tmp_path / "root", mirror)


def test_only_the_web_is_a_mirror_and_only_with_a_checksum(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"omniglot\(download\): expected an http:// or https://"):
        fetch(tmp_path, mo.tasks.Mirror(tmp_path.as_uri(), {NAME: ""}))
    with pytest.raises(ArgumentError, match=rf"expected the MD5 of {NAME}"):
        fetch(tmp_path, mo.tasks.Mirror("https://example.org", {}))
    assert names(tmp_path) == []
