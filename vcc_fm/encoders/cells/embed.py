"""From a cell store to the embedding store of cells: one vector a cell, in the order of the cell store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from rich.console import Console

from vcc_fm.encoders.cells.expression import FIT_CELLS, ExpressionEncoder
from vcc_fm.encoders.cells.state_se import SeSettings, StateSeEncoder
from vcc_fm.encoders.cells.state_se_tokens import Tokenizer, match_genes
from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint, load_state_se
from vcc_fm.encoders.shards import Shards
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, whole_folder
from vcc_fm.ground.paths import expand
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.recipe.embed import CellEncoderConfig
from vcc_fm.store.cells import CellStore, evenly_spaced
from vcc_fm.store.embeddings import write_embeddings

ROWS = 8192
SHARD = 1024
"""Cells of a shard, which is what a process computes and keeps."""

TOKENISED = 256
"""Cells tokenised at a time, 6 MB at 2,048 tokens."""

SAMPLE = 2000
"""Cells of a source whose counts tell how much of them the checkpoint knows."""


def embed_cells(
    final: Path, cells: CellStore, config: CellEncoderConfig, fingerprint: str, state: PartialState, console: Console
) -> None:
    """Encode all cells of a store and write their vectors into ``final``.

    All processes of ``state`` call it. The expression encoder takes seconds on one core and is left to the first.

    Args:
        final: folder of the store; it appears when it is whole.
        cells: the cells.
        config: encoder and its settings.
        fingerprint: of everything the vectors depend on.
        state: who takes part.
        console: where progress goes.

    Raises:
        UserError: there are too few controls or shared genes for the width (expression); the checkpoint cannot be
            had, or knows too little of a source's counts (state-se).
    """
    if config.encoder == "state-se":
        _embed_state_se(final, cells, config, fingerprint, state, console)
    elif state.is_main_process:
        with whole_folder(final) as partial:
            lines = ProgressLines("embed cells", "cells", console)
            _embed_expression(partial, cells, config, fingerprint, lines)
    state.wait_for_everyone()


def _embed_expression(
    folder: Path, cells: CellStore, config: CellEncoderConfig, fingerprint: str, progress: Callable[[int, int], None]
) -> None:
    """Fit the expression encoder and write the vectors of all cells into ``folder``.

    The encoder is fitted on control cells alone: they are in no split's held-out part, so that one store serves every
    fold and no held-out cell can reach it. At most ``FIT_CELLS`` of them are used, evenly spaced over the store.
    """
    controls = cells.rows(perturbation=cells.control)
    fitting = evenly_spaced(controls, FIT_CELLS)
    measured = np.asarray(cells.measured.all(axis=0))
    encoder = ExpressionEncoder.fit(cells.sparse(fitting), measured, config.width, config.target_sum)

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(cells), ROWS):
            rows = np.arange(start, min(start + ROWS, len(cells)))
            yield cells.barcodes[rows], encoder.encode(cells.sparse(rows))
            progress(int(rows[-1]) + 1, len(cells))

    encoder.save(folder / "encoder.safetensors")
    meta = encoder.describe() | {"cells": cells.fingerprint, "fitted_on": f"{len(fitting)} control cells"}
    write_embeddings(folder, "barcode", chunks(), config.width, fingerprint, meta)


def _embed_state_se(
    final: Path, cells: CellStore, config: CellEncoderConfig, fingerprint: str, state: PartialState, console: Console
) -> None:
    """Embed with SE: nothing is fitted, and no cell's vector depends on another cell."""
    with state.local_main_process_first():
        checkpoint = load_state_se(str(expand(config.model)), config.revision, config.heads)
    covered = vocabulary_coverage(cells, checkpoint, config.coverage)
    for line in covered:
        console.print(
            f"embed cells: {line['source']}: {line['genes_known']:,} of {line['genes']:,} genes known, "
            f"with {line['counts_known']:.1%} of the counts",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    settings = SeSettings(config.mode, config.pad_length, config.scale_to, config.draw)
    bf16 = config.precision == "bfloat16" or (config.precision == "auto" and state.device.type == "cuda")
    encoder = StateSeEncoder(
        checkpoint,
        cells.genes,
        settings,
        torch.bfloat16 if bf16 else torch.float32,
        state.device,
        config.batch_cells,
    )
    tokenizers = [
        encoder.tokenizer(mask, f"source {source['name']}")
        for mask, source in zip(cells.measured_by_source, cells.meta["sources"], strict=True)
    ]
    starts = range(0, len(cells), SHARD)

    def encode(number: int, progress: Callable[[int], None]) -> np.ndarray:
        rows = np.arange(starts[number], min(starts[number] + SHARD, len(cells)))
        return _embed_rows(encoder, tokenizers, cells, rows, progress).astype(config.store_as)

    work = Shards(final, fingerprint, state)
    work.compute([min(SHARD, len(cells) - start) for start in starts], encode, "cells", "embed cells", console)
    if state.is_main_process:
        with whole_folder(final) as partial:
            further = datasets.Features(
                {"dataset_vector": datasets.List(datasets.Value(config.store_as), length=encoder.dataset_width)}
            )
            chunks = (
                _row_group(cells.barcodes[start : start + SHARD], work.load(number), encoder.width)
                for number, start in enumerate(starts)
            )
            meta = encoder.describe() | {"cells": cells.fingerprint, "vocabulary": covered}
            write_embeddings(partial, "barcode", chunks, encoder.width, fingerprint, meta, further, config.store_as)
        work.remove()
        missing = read_json(final / "store.json")["missing"]
        if missing:
            console.print(f"embed cells: {len(missing):,} cells express no known gene; they have no vector")


def _embed_rows(
    encoder: StateSeEncoder,
    tokenizers: list[Tokenizer],
    cells: CellStore,
    rows: np.ndarray,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Cell and data set vectors of ``rows``, side by side, [n, width + dataset width] float32."""
    vectors = np.empty((len(rows), encoder.width + encoder.dataset_width), np.float32)
    source = cells.batch_source[cells.batch[rows]]
    done = 0
    for number, tokenizer in enumerate(tokenizers):
        mine = np.flatnonzero(source == number)
        for start in range(0, len(mine), TOKENISED):
            part = mine[start : start + TOKENISED]
            tokens = tokenizer.tokenize(cells.sparse(rows[part]), int(rows[part[0]]))
            vectors[part] = np.hstack(encoder.embed(tokens, _after(done, progress)))
            done += len(part)
    return vectors


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Progress of a part, told as that of the whole."""
    return lambda part: progress(done + part)


def _row_group(barcodes: np.ndarray, vectors: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    dataset = np.ascontiguousarray(vectors[:, width:])
    return barcodes, vectors[:, :width], pa.FixedSizeListArray.from_arrays(pa.array(dataset.ravel()), dataset.shape[1])


def vocabulary_coverage(cells: CellStore, checkpoint: SeCheckpoint, smallest: float) -> list[dict[str, Any]]:
    """How much of each source a checkpoint knows.

    Args:
        cells: the cells.
        checkpoint: its gene symbols count.
        smallest: share of a source's counts that must be in known genes.

    Returns:
        Per source: name, genes measured, genes known, and the share of the counts of evenly spaced cells
        (``SAMPLE`` at most) that is in known genes.

    Raises:
        UserError: a source has no known gene, or too small a share of its counts is in such.
    """
    source_of_row = cells.batch_source[cells.batch]
    covered = []
    for number, source in enumerate(cells.meta["sources"]):
        measured = cells.measured_by_source[number]
        where = f"source {source['name']}"
        columns = [gene for gene, on in zip(cells.genes, measured, strict=True) if on]
        genes = match_genes(columns, checkpoint.names, where, minimum_share=0.0)
        rows = np.flatnonzero(source_of_row == number)
        sums = cells.sums(evenly_spaced(rows, SAMPLE))[measured]
        known = float(sums[genes.ids >= 0].sum() / max(sums.sum(), 1))
        if known < smallest:
            lost = [genes.columns[i] for i in np.argsort(-sums) if genes.ids[i] < 0][:5]
            raise UserError(
                f"{where}: {known:.0%} of its counts are in genes that the checkpoint knows, embed.cells.coverage "
                f"asks for {smallest:.0%}; most counts are lost in {', '.join(lost)}. Check the source key `symbols`, "
                "or lower embed.cells.coverage"
            )
        covered.append(
            {
                "source": source["name"],
                "genes": len(genes.columns),
                "genes_known": genes.matched,
                "counts_known": round(known, 4),
            }
        )
    return covered
