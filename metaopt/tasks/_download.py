"""Files from the authors' server: resumed when broken off, checked before they get their name."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from metaopt.errors import ArgumentError, DataError
from metaopt.progress import bar

__all__ = ["OMNIGLOT", "Mirror", "fetch"]

_BLOCK, _ATTEMPTS, _TIMEOUT = 1 << 16, 3, 30.0


class Mirror(NamedTuple):
    """Where files come from: ``base_url/name``, and the MD5 of every name."""

    base_url: str
    md5: dict[str, str]


OMNIGLOT = Mirror(
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python",
    {
        "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    },
)


def fetch(where: str, mirror: Mirror, name: str, folder: Path) -> Path:
    """Return ``folder / name``, downloaded unless it is there.

    What has arrived waits in ``name.part``; a broken connection is taken up again from there, in this call
    (three attempts) or the next. The file gets its name once its checksum is right.

    Raises: ArgumentError for an address that is not http(s); DataError if the server refuses, the
            connection stays broken (the part is kept), or the checksum is wrong (it is not).
    """
    path, part = folder / name, folder / f"{name}.part"
    if path.exists():
        return path
    if not mirror.base_url.startswith(("http://", "https://")):
        raise ArgumentError(where, "an http:// or https:// address", repr(mirror.base_url))
    if name not in mirror.md5:
        raise ArgumentError(where, f"the MD5 of {name}", f"those of {sorted(mirror.md5)}")
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{mirror.base_url.rstrip('/')}/{name}"
    trouble = ""
    for _ in range(_ATTEMPTS):
        trouble = _attempt(where, url, part)
        if not trouble:
            break
    else:
        raise DataError(
            where, "the whole file", f"'{trouble}'", url, "Call again to resume, or copy the file to root."
        )
    found = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest()
    if found != mirror.md5[name]:
        part.unlink()
        raise DataError(
            where, f"MD5 {mirror.md5[name]}", found, url, "The download was removed; call again to repeat it."
        )
    part.replace(path)
    return path


def _attempt(where: str, url: str, part: Path) -> str:
    """Fetch what is missing of ``part``; return what broke it off, or nothing."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "metaopt", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as reply:
            if reply.status != 206:  # the server starts from the beginning
                have = 0
            length = reply.headers.get("Content-Length")
            total = have + int(length) if length else None
            with (
                part.open("ab" if have else "wb") as file,
                bar(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as shown,
            ):
                while block := reply.read(_BLOCK):
                    file.write(block)
                    have += len(block)
                    shown.update(len(block))
        return f"{have} of {total} bytes" if total is not None and have < total else ""
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing follows what we have: it is whole, or of another file
            return ""
        if error.code >= 500:
            return str(error)
        raise DataError(where, "the file", f"'{error}'", url, "Copy it to root yourself.") from error
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
