"""Downloads over HTTP: fetched once, resumed after an interruption, kept only when complete.

Refuses to unpack what it fetched, and to fetch more than one address at a time.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from lstmfast.text import files
from lstmfast.text.files import Progress

_TIMEOUT_SECONDS = 30


def download(
    url: str,
    folder: str | os.PathLike[str],
    *,
    expected_bytes: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Path of the file in `folder`, downloaded only if it is not there yet.

    An interrupted download is resumed if the server still has the same file (same length, ETag and date) and supports
    ranges; otherwise it starts over. Raises ValueError if the size is not `expected_bytes`, OSError if the server
    cannot be reached, refuses, or closes the connection early; the file then does not exist.
    """
    target = files.make_folder(folder) / _file_name(url)
    if not target.exists():
        with files.new_file(target.parent):
            pass  # so that an error of the folder is not taken for one of the server
    try:
        if not target.exists():
            _fetch(url, target, expected_bytes, progress)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"cannot download {url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise OSError(f"cannot download {url}: {reason}; run the same command again to resume") from error
    if expected_bytes is not None:
        files.check_size(f"{url} (kept as {target})", target.stat().st_size, expected_bytes)
    return target


def _file_name(url: str) -> str:
    """The address's file name after a hash of the whole address, so that files of the same name do not collide."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", last)[-80:] or "download"
    return f"{hashlib.blake2b(url.encode(), digest_size=4).hexdigest()}-{readable}"


def _fetch(url: str, target: Path, expected_bytes: int | None, progress: Progress | None) -> None:
    kept = next(target.parent.glob(f"{target.name}.*.partial"), None)
    offset = kept.stat().st_size if kept else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            start, total = _extent(response)
            partial = _partial_path(target, response, total)
            same_file = kept == partial and start == offset
            if same_file or start == 0:
                if kept and not same_file:
                    kept.unlink()
                if total is not None and expected_bytes is not None:
                    files.check_size(url, total, expected_bytes)
                _receive(response, partial, start, total, expected_bytes, url, progress)
                os.replace(partial, target)
                return
    except urllib.error.HTTPError as error:
        if not (kept and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        error.close()
    if kept is None:
        raise ConnectionError("the server sent a part of the file without being asked for one")
    kept.unlink()  # it belongs to another version of the file than the server has now
    _fetch(url, target, expected_bytes, progress)


def _extent(response: Any) -> tuple[int, int | None]:
    """(offset of the first byte sent, length of the whole file if the server gives it)."""
    if response.status == http.client.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _partial_path(target: Path, response: Any, total: int | None) -> Path:
    """Path of the incomplete file, whose name identifies this version of the file."""
    version = f"{total} {response.headers.get('ETag')} {response.headers.get('Last-Modified')}"
    return target.with_name(f"{target.name}.{hashlib.blake2b(version.encode(), digest_size=4).hexdigest()}.partial")


def _receive(
    response: Any,
    partial: Path,
    start: int,
    total: int | None,
    expected_bytes: int | None,
    url: str,
    progress: Progress | None,
) -> None:
    """Append the response to `partial` from byte `start`; returns only when the file is complete and on the disk."""
    done = start
    with partial.open("ab" if start else "wb") as file:
        for piece in files.pieces(response):
            file.write(piece)
            done += len(piece)
            if progress:
                progress("download", done, total)
            if expected_bytes is not None and done > expected_bytes:
                break
        file.flush()
        os.fsync(file.fileno())  # unlike the corpus cache, a download has no checksum that would show a loss
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")
    if expected_bytes is not None and done != expected_bytes:
        partial.unlink()
        files.check_size(url, done, expected_bytes)
