"""What a cell encoder is: one class, with the section of the recipe that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from vcc_fm.recipe.embed import CellEncoderSettings

if TYPE_CHECKING:
    from accelerate import PartialState
    from rich.console import Console

    from vcc_fm.store.cells import CellStore


class CellEncoder(ABC):
    """Makes one vector of each cell of a store, from the cell's counts alone.

    A recipe names it under ``embed.cells.encoder``; it is registered in ``vcc_fm.recipe.parts``. ``fit`` runs once, in
    the first process; ``load`` in each, before ``encode``.

    Attributes:
        Settings: its section of a recipe.
        further: name -> width of further vectors of a cell, stored in columns of their own.
        obsm: key under which other programs look for such vectors in an h5ad.
        none_because: why a cell has no vector, as a message says it.
        terms: licence of its weights, where it limits what may be done with vectors; known before they are loaded.
        dtype: of the stored vectors, ``float32`` or ``float16``.
    """

    Settings: ClassVar[type[CellEncoderSettings]]
    obsm: ClassVar[str] = "X_embedding"
    none_because: ClassVar[str] = "the encoder gives none"
    terms: ClassVar[str] = ""
    dtype: Literal["float32", "float16"] = "float32"

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a cell's vector; a plan asks, so that no weights are read for it.

        Raises:
            UserError: it depends on a file that cannot be had.
        """

    @property
    def further(self) -> dict[str, int]:
        """No further vectors."""
        return {}

    @abstractmethod
    def identity(self) -> Any:
        """JSON of all that a vector depends on besides the cells: it goes into the store's fingerprint."""

    def check(self, genes: int, controls: int) -> None:
        """Refuse cells that it could not be fitted on.

        Args:
            genes: number of genes that every source measured.
            controls: number of control cells.

        Raises:
            UserError: there are too few.
        """

    def fit(self, cells: CellStore, folder: Path) -> None:
        """Fit on control cells and write what ``load`` needs into ``folder``; its files stay beside the vectors.

        No split ever holds a control cell out, so that one store serves every fold.
        """

    @abstractmethod
    def load(self, cells: CellStore, folder: Path, state: PartialState, console: Console) -> None:
        """Get ready to encode, in every process.

        Args:
            cells: what will be encoded.
            folder: what ``fit`` wrote.
            state: says on which device.
            console: where notes go.

        Raises:
            UserError: a checkpoint cannot be had, or does not fit the cells.
        """

    @abstractmethod
    def encode(self, cells: CellStore, rows: np.ndarray, progress: Callable[[int], None]) -> np.ndarray:
        """Vectors of ``rows`` [n] of the store, and further ones beside them.

        Returns:
            [n, width + widths of ``further``] float32, NaN for a cell without a vector. A row depends on its own cell
            alone, to the last bit.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What ``store.json`` records: ``encoder``, ``parameters``, ``licence``, ``citation``, and what else."""
