"""vcc_fm: foundation-model embeddings in, perturbed single-cell counts out."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "PerturbationPipeline": "vcc_fm.pipeline",
    "PerturbationDecoder": "vcc_fm.decoder.model",
    "UserError": "vcc_fm.ground.errors",
}
"""What the package offers by name -> where it is; imported when it is asked for, as it may bring torch."""


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _cache_compiled_code() -> None:
    """Give numba's cache a folder where neither the package nor the home can be written, as in a read-only container.

    A folder of this process alone: the cache is pickled code, which must not lie where others could put it.
    """
    # Not Path.home(), which fails for a user whom the machine does not know.
    home = Path(os.path.expanduser("~"))
    if "NUMBA_CACHE_DIR" in os.environ or any(map(_writable, (Path(__file__).parent, home))):
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
