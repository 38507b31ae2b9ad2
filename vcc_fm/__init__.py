"""vcc_fm: foundation-model embeddings in, perturbed single-cell counts out."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

__version__ = "0.1.0"


def _cache_compiled_code() -> None:
    """Give numba's cache a folder where neither the package nor the home can be written, as in a read-only container.

    A folder of this process alone: the cache is pickled code, which must not lie where others could put it.
    """
    if "NUMBA_CACHE_DIR" in os.environ or any(map(_writable, (Path(__file__).parent, Path.home()))):
        return
    folder = tempfile.mkdtemp(prefix="vcc-fm-numba-")
    os.environ["NUMBA_CACHE_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


_cache_compiled_code()
