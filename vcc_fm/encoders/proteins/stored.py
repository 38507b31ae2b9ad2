"""Vectors of proteins that were computed before, by whatever encoder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vcc_fm.encoders.proteins.encoder import JSON, Known, VectorTable
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.embed import ProteinEncoderSettings

if TYPE_CHECKING:
    from vcc_fm.store.embeddings import EmbeddingStore


class StoredProteinsSettings(ProteinEncoderSettings):
    """Keys of ``embed.proteins`` with ``encoder: store``."""

    encoder: Literal["store"] = Field("store", description="vectors that were computed before")
    store: str = Field(description="embedding store of proteins: a folder, or hf://datasets/ORG/NAME/proteins")


class StoredProteins(VectorTable):
    """An embedding store that is there already."""

    Settings = StoredProteinsSettings

    def __init__(self, settings: StoredProteinsSettings):
        self.settings = settings

    @cached_property
    def _store(self) -> EmbeddingStore:
        from vcc_fm.store.embeddings import EmbeddingStore
        from vcc_fm.store.shared import local_store

        store = EmbeddingStore(local_store(self.settings.store))
        if store.meta["key"] != "symbol":
            raise UserError(f"embed.proteins.store={self.settings.store}: holds vectors of cells, not of proteins")
        return store

    @property
    def width(self) -> int:
        """That of the store."""
        return self._store.width

    def identity(self) -> Any:
        """The address, or what the store was made from."""
        if self.settings.store.startswith("hf://"):
            return self.settings.store
        return self._store.fingerprint

    def known(self, fasta: Path | None) -> Known:
        """See :class:`ProteinEncoder`."""
        return Known(set(map(str, self._store.keys)), {})

    def vectors(self) -> tuple[list[str], NDArray[np.float32]]:
        """See :class:`VectorTable`."""
        return list(map(str, self._store.keys)), self._store.vectors

    def describe(self) -> dict[str, JSON]:
        """What the store says of the encoder that made it."""
        own = {"schema", "key", "rows", "width", "shards", "missing", "fingerprint", "sequences"}
        return {name: value for name, value in self._store.meta.items() if name not in own}
