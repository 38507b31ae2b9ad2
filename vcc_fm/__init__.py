"""vcc_fm: foundation-model embeddings in, perturbed single-cell counts out."""

from __future__ import annotations

import atexit
import importlib
import importlib.abc
import importlib.machinery
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
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


_REGISTERING = {
    "transformers.models.auto.configuration_auto": "vcc_fm.decoder.config",
    "transformers.models.auto.modeling_auto": "vcc_fm.decoder.model",
}
"""Module that knows models by name -> ours that adds the decoder to it."""


class _Registration(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Adds the decoder to `transformers` when that is imported, now or later.

    Then ``AutoModel.from_pretrained`` knows it after ``import vcc_fm``, and no command that needs neither waits for
    torch.
    """

    def __init__(self) -> None:
        self._found: dict[str, importlib.machinery.ModuleSpec] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _REGISTERING or name in self._found:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        self._found[name] = spec
        return importlib.machinery.ModuleSpec(name, self, origin=spec.origin, is_package=False)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        spec = self._found[module.__name__]
        assert spec.loader is not None
        module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
        spec.loader.exec_module(module)
        importlib.import_module(_REGISTERING[module.__name__])


def _register() -> None:
    missing = [name for name in _REGISTERING if name not in sys.modules]
    if missing:
        sys.meta_path.insert(0, _Registration())
    for name in _REGISTERING.keys() - set(missing):
        importlib.import_module(_REGISTERING[name])


_register()


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
