"""Files by path, by ``https://`` or by ``hf://``: a local path for each, and their bytes, plain or gzip.

A download lands whole or not at all: it is written under a temporary name by one process at a time, checked against
the length that the server announced, flushed and renamed. The file of a URL is then kept: a second call opens it
without asking the server, so remove it from the cache folder to get a newer one.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast
from urllib.parse import SplitResult, unquote, urlsplit

from filelock import FileLock

from vcc_fm.errors import UserError
from vcc_fm.recipe import expand
from vcc_fm.recipe import without_secrets as _shown

_BLOCK = 1 << 20
_SILENCE_S = 60.0  # a server that sends nothing for so long is gone
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_HUB = re.compile(
    r"hf://(?:(?P<kind>datasets)/|(?!(?:datasets|spaces)/))(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)"
)
Progress = Callable[[int, int], None]


def open_local(path: str, get: str | None = None, progress: Progress | None = None) -> Path:
    """Where a file lies on this machine, after a download where it needs one.

    Args:
        path: a local path (``${VARIABLE}`` and ``~`` are expanded), ``https://…``, ``hf://datasets/ORG/NAME/FILE`` or
            ``hf://ORG/NAME/FILE`` (a model repository); ``NAME@REVISION`` names a branch, a tag or a commit, with its
            slashes written ``%2F``. Plain ``http://`` is taken from this machine's own loopback address only.
        get: where to get the file, for the message when a local one is missing.
        progress: called with (bytes so far, bytes in all or 0 where the server does not say) during an https
            download; a Hub download shows the Hub library's own bar.

    Returns:
        An existing local file. A download is kept in ``${VCC_FM_CACHE}`` (``~/.cache/vcc_fm`` where that is not set)
        or, for ``hf://``, in the Hugging Face cache.

    Raises:
        UserError: the file is missing or is a folder; the address is malformed or unsafe; the server refuses, cannot
            be reached or breaks off. No message shows the query of a URL or a token.
    """
    if path.startswith("hf://"):
        return _from_hub(path)
    if re.match(r"[A-Za-z]\w*://", path):
        return _from_web(path, progress or (lambda done, total: None))
    local = expand(path)
    if local.is_dir():
        raise UserError(f"{path}: is a folder; a file is expected")
    if not local.exists():
        raise UserError(f"{path}: no such file" + (f"; get it from {get}" if get else ""))
    return local


@contextmanager
def read_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a local file for reading, plain or gzip, told by its content.

    Raises:
        UserError: the gzip data is cut short or damaged, found at any time while the block reads.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: gzip file cut short or damaged ({error}); get it again") from None


# ------------------------------------------------------------------------------------------------------------- the web
class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect must not leave https: what comes after it could be read and changed on the way."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_address(newurl)
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


def _from_web(url: str, progress: Progress) -> Path:
    name = re.sub(r"[^\w.-]", "_", _check_address(url).path.rpartition("/")[2]) or "file"
    folder = Path(os.environ.get("VCC_FM_CACHE") or "~/.cache/vcc_fm").expanduser()
    final = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if final.exists():
        return final
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{final.name}.lock")):
            if not final.exists():
                _download(url, final, progress)
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error}); set VCC_FM_CACHE to a folder for downloads") from None
    return final


def _download(url: str, final: Path, progress: Progress) -> None:
    partial = final.with_name(final.name + ".partial")
    request = urllib.request.Request(url, headers={"User-Agent": "vcc-fm"})  # noqa: S310 (checked by the caller)
    opener = urllib.request.build_opener(_SafeRedirects)
    done = total = 0
    try:
        with opener.open(request, timeout=_SILENCE_S) as response, partial.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            while block := response.read(_BLOCK):
                file.write(block)
                done += len(block)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total and done != total:
            raise http.client.IncompleteRead(b"", total - done)
    except urllib.error.HTTPError as error:
        raise UserError(f"{_shown(url)}: the server answers {error.code} {error.reason}; check the address") from None
    except (ConnectionResetError, http.client.IncompleteRead):
        of = f" of {total:,}" if total else ""
        raise UserError(f"{_shown(url)}: the connection was cut after {done:,}{of} bytes; run it again") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"{_shown(url)}: not downloaded ({reason}); check the network, or download the file and give its path"
        ) from None
    else:
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- the Hub
def _from_hub(url: str) -> Path:
    match = _HUB.fullmatch(url)
    if match is None:
        raise UserError(
            f"{url}: write hf://datasets/ORG/NAME/FILE or hf://ORG/NAME/FILE, with NAME@REVISION if needed"
        )
    # Imported here: only a file on the Hub needs the library, and every command reads this module.
    from huggingface_hub import errors, hf_hub_download

    repo, revision = match["repo"], unquote(match["revision"] or "main")
    kind = "dataset" if match["kind"] else "model"
    try:
        return Path(hf_hub_download(repo, match["file"], repo_type=kind, revision=revision))
    except errors.GatedRepoError:
        raise UserError(f"{url}: {repo} is gated; accept its terms on the Hub and run `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{url}: no {kind} repository {repo}; check the name, or `hf auth login` if private") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{url}: {repo} has no revision {revision}; name a branch, a tag or a commit") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{url}: not in the local cache, and the Hub cannot be reached; check the network and HF_HUB_OFFLINE"
        ) from None
    except errors.EntryNotFoundError:
        raise UserError(f"{url}: {repo} has no file {match['file']} in revision {revision}") from None
    except (ValueError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{url}: not downloaded ({first}); check the address and the network") from None
