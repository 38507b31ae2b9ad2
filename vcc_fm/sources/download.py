"""A file from an ``https://`` address, kept whole or not at all.

It is written under a temporary name by one process at a time, checked (length, SHA-256 where one is given, the end of
gzip data, not a web page), flushed and renamed. What a cut connection left is gone on with where the server vouches,
by a strong ETag, that it is still the same file.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import ipaddress
import os
import re
import socket
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast
from urllib.parse import SplitResult, urlsplit

from filelock import FileLock

from vcc_fm.ground.errors import UserError, first_line
from vcc_fm.ground.files import sha256_file
from vcc_fm.ground.paths import without_secrets as _shown

_BLOCK = 1 << 20
_SILENCE_S = 60.0  # a server that sends next to nothing for so long is gone
_LEAST = 1 << 16  # bytes in that time
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PAGE = (b"<!doctype html", b"<html")


def cache_folder() -> Path:
    """Where downloads are kept: ``${VCC_FM_CACHE}``, or ``~/.cache/vcc_fm`` where that is not set."""
    return Path(os.environ.get("VCC_FM_CACHE") or "~/.cache/vcc_fm").expanduser()


def fetch(url: str, sha256: str | None) -> Path:
    """The file of an address, downloaded once.

    Args:
        url: ``https://``, or ``http://`` of this machine itself.
        sha256: what the file must have (hex), if known.

    Raises:
        UserError: as ``open_local``.
    """
    name = re.sub(r"[^\w.-]", "_", _check_address(url).path.rpartition("/")[2])[-100:] or "file"
    folder = cache_folder()
    final = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{final.name}.lock")):
            if not final.exists():
                _download(url, final, sha256)
                return final
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error}); set VCC_FM_CACHE to a folder for downloads") from None
    return check_sha256(final, sha256, "remove it, and it is downloaded again")


def check_sha256(file: Path, sha256: str | None, advice: str = "get it again, or correct the sha256") -> Path:
    """The file, if it has that SHA-256 (hex) or none is asked for.

    Raises:
        UserError: it has another one.
    """
    if sha256 is not None and (found := sha256_file(file)) != sha256.lower():
        raise UserError(f"{file}: its SHA-256 is {found}, the recipe says {sha256}; {advice}")
    return file


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect must not leave https, nor lead a server from outside into this machine or its network."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        parts = _check_address(newurl)
        if parts.netloc != urlsplit(req.full_url).netloc:
            _check_public(parts, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"an address to download from is malformed ({error}); correct it") from None
    if not ((parts.scheme == "https" and parts.hostname) or (parts.scheme == "http" and parts.hostname in _LOOPBACK)):
        raise UserError(f"{_shown(url)}: not an address to download from; use https://, hf:// or a local path")
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{_shown(url)}: holds a user name or password; download the file yourself and give its path")
    return parts


def _check_public(parts: SplitResult, url: str) -> None:
    try:
        found = socket.getaddrinfo(parts.hostname, None)
    except OSError:
        return  # behind a proxy, which asks for itself; without one the connection fails in the same way
    for *_, address in found:
        place = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if isinstance(place, ipaddress.IPv6Address) and place.ipv4_mapped:
            place = place.ipv4_mapped
        if not place.is_global:
            raise UserError(
                f"{_shown(url)}: a redirect to {place}, which is inside this machine or its network; give the address "
                "of the file itself"
            )


def _download(url: str, final: Path, sha256: str | None) -> None:
    partial, tag = final.with_name(final.name + ".partial"), final.with_name(final.name + ".partial.etag")
    done = total = 0
    kept = False
    try:
        with _open(url, partial, tag) as response:
            done = partial.stat().st_size if response.status == 206 else 0
            total = 0 if response.length is None else done + response.length
            etag = response.headers.get("ETag", "")
            tag.unlink(missing_ok=True)
            with partial.open("ab" if done else "wb") as file:
                # A strong ETag, and a length that says where the end is.
                if kept := bool(total) and etag.startswith('"'):
                    tag.write_text(etag)
                for block in _blocks(response):
                    _write(file, block)
                    done += len(block)
                file.flush()
                os.fsync(file.fileno())
            if total and done != total:
                raise http.client.IncompleteRead(b"", total - done)
            kept = False
            _check_content(partial, response.headers.get_content_type(), url)
            check_sha256(partial, sha256, f"it is not kept; correct the sha256, or {_shown(url)}")
            partial.replace(final)
    except _DiskError as error:
        kept = False
        raise error.error from None
    except urllib.error.HTTPError as error:
        raise UserError(f"{_shown(url)}: the server answers {error.code} {error.reason}; check the address") from None
    except (ConnectionResetError, http.client.IncompleteRead):
        of = f" of {total:,}" if total else ""
        raise UserError(f"{_shown(url)}: the connection was cut after {done:,}{of} bytes; run it again") from None
    except TimeoutError:
        raise UserError(
            f"{_shown(url)}: next to nothing came for {_SILENCE_S:.0f} s, after {done:,} bytes; run it again"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else first_line(error)
        raise UserError(
            f"{_shown(url)}: not downloaded ({reason}); check the network, or download the file and give its path"
        ) from None
    finally:
        if not kept:
            partial.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)


class _DiskError(Exception):
    """Writing failed, which is nothing of the network's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _write(file: IO[bytes], block: bytes) -> None:
    try:
        file.write(block)
    except OSError as error:
        raise _DiskError(error) from None


def _open(url: str, partial: Path, tag: Path) -> http.client.HTTPResponse:
    """The answer to a request for the whole file, or for the rest where a part is here."""
    headers = {"User-Agent": "vcc-fm", "Accept-Encoding": "identity"}
    start = partial.stat().st_size if partial.exists() and tag.exists() else 0
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": tag.read_text()}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (checked by the caller)
    opener = urllib.request.build_opener(_SafeRedirects)
    response = opener.open(request, timeout=_SILENCE_S)
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        response.close()
        raise http.client.HTTPException("the server sends another part of the file than was asked for")
    return cast(http.client.HTTPResponse, response)


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What the server sends, as long as it sends at a rate."""
    begin, received = time.monotonic(), 0
    while block := response.read1(_BLOCK):
        yield block
        received += len(block)
        if time.monotonic() - begin > _SILENCE_S:
            if received < _LEAST:
                raise TimeoutError
            begin, received = time.monotonic(), 0


def _check_content(file: Path, kind: str, url: str) -> None:
    """Refuse what is no file: nothing, a page that tells a person something, or gzip data without its end."""
    with file.open("rb") as content:
        start = content.read(512)
    if not start:
        raise UserError(f"{_shown(url)}: the server sent an empty file; check the address")
    if kind == "text/html" or start.lstrip().lower().startswith(_PAGE):
        raise UserError(f"{_shown(url)}: the server sent a web page, not a file; give the address of the file itself")
    if start.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(file) as content:
                while content.read(_BLOCK):
                    pass
        except (OSError, EOFError, zlib.error):
            raise UserError(f"{_shown(url)}: the server sent gzip data cut short or damaged; run it again") from None
