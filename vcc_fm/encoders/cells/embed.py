"""From a cell store to the embedding store of cells: one vector a cell, in the order of the cell store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from rich.console import Console

from vcc_fm.encoders.cells.encoder import CellEncoder
from vcc_fm.encoders.shards import Shards
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, whole_folder
from vcc_fm.ground.paths import without_folders
from vcc_fm.recipe.embed import CellEncoderSettings
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import fixed_lists, write_embeddings

SHARD = 1024
"""Cells of a shard, which is what a process computes and keeps."""


def embed_cells(
    final: Path,
    cells: CellStore,
    encoder: CellEncoder,
    fingerprint: str,
    state: PartialState,
    console: Console,
    fitted_before: Path | None = None,
    settings: CellEncoderSettings | None = None,
) -> None:
    """Encode all cells of a store and write their vectors into ``final``; all processes of ``state`` call it.

    Args:
        final: folder of the store; it appears when it is whole.
        cells: the cells.
        encoder: what makes their vectors.
        fingerprint: of everything the vectors depend on.
        state: who takes part.
        console: where progress goes.
        fitted_before: folder of what the encoder wrote when it was fitted on other cells; None fits it on these.
        settings: of the encoder, kept in ``store.json`` for who embeds further cells alike.

    Raises:
        UserError: the encoder cannot be fitted or had, or does not fit the cells.
    """
    work = Shards(final, fingerprint, state)
    fitted = _fitted(work, encoder, cells, fitted_before, state, console)
    starts = range(0, len(cells), SHARD)

    def encode(number: int, progress: Callable[[int], None]) -> np.ndarray:
        rows = np.arange(starts[number], min(starts[number] + SHARD, len(cells)))
        return encoder.encode(cells, rows, progress).astype(encoder.dtype)

    work.compute([min(SHARD, len(cells) - start) for start in starts], encode, "cells", "embed cells", console)
    if state.is_main_process:
        further = datasets.Features(
            {name: datasets.List(datasets.Value(encoder.dtype), width) for name, width in encoder.further.items()}
        )
        with whole_folder(final) as partial:
            for file in fitted.iterdir():
                shutil.copy(file, partial)
            # Vectors that were taken from a store bring the settings that they were made with.
            kept = {} if settings is None else {"settings": _without_folders(settings)}
            meta = kept | encoder.describe() | {"cells": cells.fingerprint, "further": list(encoder.further)}
            chunks = _chunks(cells, work, encoder)
            write_embeddings(partial, "barcode", chunks, encoder.width, fingerprint, meta, further, encoder.dtype)
        work.remove()
        if missing := read_json(final / "store.json")["missing"]:
            console.print(f"embed cells: {len(missing):,} cells have no vector: {encoder.none_because}")
    state.wait_for_everyone()


def _fitted(
    work: Shards,
    encoder: CellEncoder,
    cells: CellStore,
    before: Path | None,
    state: PartialState,
    console: Console,
) -> Path:
    """The folder of what the encoder was fitted to; by then it is loaded in every process."""
    fitted = work.folder / "fitted"
    try:
        # Once only: shards that are kept from before a stop belong to it.
        if state.is_main_process and not fitted.exists():
            with whole_folder(fitted) as partial:
                if before is None:
                    encoder.fit(cells, partial)
                else:
                    shutil.copytree(before, partial, dirs_exist_ok=True)
        state.wait_for_everyone()
        with state.local_main_process_first():
            encoder.load(cells, fitted, state, console)
    except UserError:
        if state.is_main_process and not work.begun():
            work.remove()
        raise
    return fitted


def _without_folders(settings: CellEncoderSettings) -> dict[str, Any]:
    """Settings as others can read them: a checkpoint that lies here is told by its name."""
    told = settings.model_dump(mode="json")
    return {key: without_folders(value) if isinstance(value, str) else value for key, value in told.items()}


def _chunks(cells: CellStore, work: Shards, encoder: CellEncoder) -> Iterator[tuple[Any, ...]]:
    """Barcodes, vectors and further vectors, a shard at a time."""
    ends = np.cumsum([encoder.width, *encoder.further.values()])[:-1]
    for number, start in enumerate(range(0, len(cells), SHARD)):
        vectors, *further = np.split(work.load(number), ends, axis=1)
        yield cells.barcodes[start : start + SHARD], vectors, *map(fixed_lists, further)
