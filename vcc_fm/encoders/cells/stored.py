"""Vectors of cells that were computed before, by whatever encoder: taken from their store by barcode."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from vcc_fm.encoders.cells.encoder import CellEncoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.recipe.embed import CellEncoderSettings

if TYPE_CHECKING:
    import pandas as pd
    from accelerate import PartialState
    from rich.console import Console

    from vcc_fm.store.cells import CellStore
    from vcc_fm.store.embeddings import EmbeddingStore


class StoredCellsSettings(CellEncoderSettings):
    """Keys of ``embed.cells`` with ``encoder: store``."""

    encoder: Literal["store"] = Field("store", description="vectors that were computed before")
    store: str = Field(description="embedding store of cells: a folder, or hf://datasets/ORG/NAME/cell-embeddings")


class StoredCells(CellEncoder):
    """An embedding store that is there already; its cells may be more than those of the recipe."""

    Settings = StoredCellsSettings
    none_because = "the store that they were taken from has none for them"

    def __init__(self, settings: StoredCellsSettings):
        self.settings = settings
        self._vectors: EmbeddingStore | None = None

    @property
    def _store(self) -> EmbeddingStore:
        if self._vectors is None:
            from vcc_fm.store.embeddings import EmbeddingStore
            from vcc_fm.store.shared import local_store

            self._vectors = EmbeddingStore(local_store(self.settings.store))
            if self._vectors.meta["key"] != "barcode":
                raise UserError(f"embed.cells.store={self.settings.store}: holds vectors of proteins, not of cells")
        return self._vectors

    @cached_property
    def _index(self) -> pd.Index[str]:
        import pandas as pd

        return pd.Index(self._store.keys)

    @property
    def width(self) -> int:
        """That of the store; without its vectors."""
        from vcc_fm.store.description import NAME
        from vcc_fm.store.shared import local_store

        return int(read_json(local_store(self.settings.store, NAME) / NAME)["width"])

    @property
    def further(self) -> dict[str, int]:
        """Those of the store."""
        nothing = np.empty(0, np.int64)
        return {name: self._store.take(nothing, name).shape[1] for name in self._store.meta["further"]}

    def identity(self) -> Any:
        """The address, or what the store was made from."""
        if self.settings.store.startswith("hf://"):
            return self.settings.store
        return self._store.fingerprint

    def fit(self, cells: CellStore, folder: Path) -> None:
        """Take along what the encoder was fitted to."""
        from vcc_fm.store.embeddings import is_dataset_file

        for file in self._store.folder.iterdir():
            if not is_dataset_file(file.name):
                shutil.copy(file, folder)

    def load(self, cells: CellStore, folder: Path, state: PartialState, console: Console) -> None:
        """Find the cells.

        Raises:
            UserError: the store lacks some of them.
        """
        self.dtype = self._store.dtype
        missing = np.flatnonzero(self._rows_of(cells.barcodes) < 0)
        if len(missing):
            raise UserError(
                f"embed.cells.store={self.settings.store}: has no vector of {len(missing):,} of {len(cells):,} cells, "
                f"such as {cells.barcodes[missing[0]]}; take the cell store that it was made from, or another encoder"
            )

    def encode(self, cells: CellStore, rows: np.ndarray, progress: Callable[[int], None]) -> np.ndarray:
        """[n, width and further ones] float32, as they were stored."""
        theirs = self._rows_of(cells.barcodes[rows])
        return np.hstack([self._store.take(theirs, column) for column in ("embedding", *self.further)])

    def _rows_of(self, barcodes: np.ndarray) -> np.ndarray:
        """Where the store has cells, [n] int64; -1 where it has them not."""
        import pandas as pd

        return self._index.get_indexer(pd.Index(barcodes)).astype(np.int64)

    def describe(self) -> dict[str, Any]:
        """What the store says of the encoder that made it."""
        own = {"schema", "key", "rows", "width", "shards", "missing", "fingerprint", "cells", "further"}
        return {name: value for name, value in self._store.meta.items() if name not in own}
