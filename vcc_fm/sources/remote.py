"""Files by path, by ``https://`` or by ``hf://``: a local path for each, and their bytes, plain or gzip.

How a download lands is in ``download.py``. The file of a URL is kept: a second call opens it without asking the
server, so remove it from the cache folder to get a newer one.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.hub import address_of, download_file
from vcc_fm.ground.paths import expand
from vcc_fm.sources.download import cache_folder, check_sha256, fetch


def open_local(path: str, get: str | None = None, sha256: str | None = None) -> Path:
    """Where a file lies on this machine, after a download where it needs one.

    Args:
        path: a local path (``${VARIABLE}`` and ``~`` are expanded), ``https://…``, ``hf://datasets/ORG/NAME/FILE`` or
            ``hf://ORG/NAME/FILE`` (a model repository); ``NAME@REVISION`` names a branch, a tag or a commit, with its
            slashes written ``%2F``. Plain ``http://`` is taken from this machine's own loopback address only.
        get: where to get the file, for the message when a local one is missing.
        sha256: what the file must have (hex).

    Returns:
        An existing local file. A download is kept in ``${VCC_FM_CACHE}`` (``~/.cache/vcc_fm`` where that is not set)
        or, for ``hf://``, in the Hugging Face cache.

    Raises:
        UserError: the file is missing, is a folder or has another SHA-256; the address is malformed or unsafe; the
            server refuses, cannot be reached, breaks off or sends what is no whole file. No message shows the query
            of a URL or a token.
    """
    if path.startswith("hf://"):
        address = address_of(path)
        if address is None or not address.path:
            raise UserError(
                f"{path}: write hf://datasets/ORG/NAME/FILE or hf://ORG/NAME/FILE, with NAME@REVISION if needed"
            )
        return check_sha256(download_file(address, path), sha256)
    if re.match(r"[A-Za-z]\w*://", path):
        return fetch(path, sha256)
    local = expand(path)
    if local.is_dir():
        raise UserError(f"{path}: is a folder; a file is expected")
    if not local.exists():
        raise UserError(f"{path}: no such file" + (f"; get it from {get}" if get else ""))
    return check_sha256(local, sha256)


@contextmanager
def read_bytes(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Open a local file for reading as ``what``, plain or gzip, told by its content.

    Raises:
        UserError: the file cannot be read, found at any time while the block reads; of a download it says what to do.
    """
    kept = path.parent == cache_folder()
    advice = "remove it, and it is downloaded again" if kept else "get it again"
    try:
        with reading(path, what, advice), path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            try:
                yield cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise UserError(f"{path}: gzip file cut short or damaged ({error}); {advice}") from None
    except UserError as error:
        if kept and advice not in str(error):
            raise UserError(f"{error}; {advice}") from error.__cause__
        raise
