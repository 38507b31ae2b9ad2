"""From a FASTA file to the embedding store of proteins: one vector a gene, computed in shards.

The shards follow from the sequences alone, and each is kept in a file of its own as soon as it is done: whoever
computes them, in whatever order and after whatever interruption, the store comes out the same to the last byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from accelerate import PartialState
from rich.console import Console

from vcc_fm.encoders.proteins.encoder import ProteinEncoder, SequenceEncoder, VectorTable, mean_over_isoforms
from vcc_fm.encoders.shards import Shards
from vcc_fm.ground.files import sha256_file, whole_folder
from vcc_fm.sources.fasta import Protein, isoforms, read_proteins
from vcc_fm.store.embeddings import write_embeddings

GENES = 1024
"""Genes written at a time."""

COLUMNS = datasets.Features(
    {
        "accessions": datasets.List(datasets.Value("string")),
        "isoforms": datasets.Value("int32"),
        "residues": datasets.List(datasets.Value("int32")),
        "sha256": datasets.List(datasets.Value("string")),
    }
)
"""Beside symbol and vector, per gene: accessions of its proteins, their number, and length and SHA-256 of each."""


def embed_proteins(
    final: Path,
    fasta: Path | None,
    encoder: ProteinEncoder,
    folder: Path,
    fingerprint: str,
    state: PartialState,
    console: Console,
) -> None:
    """Write one vector a gene into ``final``; all processes of ``state`` call it.

    Args:
        final: folder of the store; it appears when it is whole.
        fasta: the proteins; None where the encoder reads none.
        encoder: what makes their vectors.
        folder: for files that the encoder makes.
        fingerprint: of everything the vectors depend on.
        state: who takes part.
        console: where progress goes.

    Raises:
        UserError: the FASTA, the table or the model is refused.
    """
    if isinstance(encoder, SequenceEncoder):
        assert fasta is not None
        _encode(final, fasta, encoder, folder, fingerprint, state, console)
    elif state.is_main_process:
        assert isinstance(encoder, VectorTable)
        _copy(final, encoder, fingerprint)
    state.wait_for_everyone()


def _encode(
    final: Path,
    fasta: Path,
    encoder: SequenceEncoder,
    folder: Path,
    fingerprint: str,
    state: PartialState,
    console: Console,
) -> None:
    """Encode sequences, each process its share of the shards, and average over isoforms; the first one writes."""
    read = read_proteins(fasta)
    genes = isoforms(read.proteins)
    if state.is_main_process:
        encoder.prepare(folder)
    state.wait_for_everyone()
    encoder.load(folder, str(state.device))
    sequences = [protein.sequence for proteins in genes.values() for protein in proteins]
    read.report.repairs.update(encoder.repairs(sequences))
    shards = encoder.plan(sequences)
    work = Shards(final, fingerprint, state)
    work.compute(
        [shard.residues for shard in shards],
        lambda number, progress: encoder.encode_shard(shards[number], progress),
        "residues",
        "embed proteins",
        console,
    )
    if state.is_main_process:
        vectors = {
            sequence: vector
            for number, shard in enumerate(shards)
            for sequence, vector in zip(shard.sequences, work.load(number), strict=True)
        }
        source = {"file": fasta.name, "sha256": sha256_file(fasta), "kind": read.report.kind}
        left_out = {reason: len(names) for reason, names in read.report.left_out.items()}
        counted = {"left_out": left_out, "faulty": read.report.faulty, "repairs": read.report.repairs}
        width = next(iter(vectors.values())).shape[0]
        with whole_folder(final) as partial:
            meta = encoder.describe() | {"sequences": source | counted}
            write_embeddings(partial, "symbol", _rows(genes, vectors), width, fingerprint, meta, COLUMNS)
        work.remove()
        console.print(f"embed proteins: {read.report.text()}", markup=False, soft_wrap=True)


def _copy(final: Path, table: VectorTable, fingerprint: str) -> None:
    """Write the vectors of a table, in order of the symbols; nothing is known of their sequences."""
    symbols, vectors = table.vectors()
    order = np.argsort(symbols)
    empty = [pa.array([[]] * len(order), pa.list_(pa.string())), pa.array([0] * len(order), pa.int32())]
    empty += [pa.array([[]] * len(order), pa.list_(kind)) for kind in (pa.int32(), pa.string())]
    with whole_folder(final) as partial:
        chunk = (np.asarray(symbols)[order], vectors[order], *empty)
        write_embeddings(partial, "symbol", [chunk], vectors.shape[1], fingerprint, table.describe(), COLUMNS)


def _rows(genes: dict[str, list[Protein]], vectors: dict[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """Symbols, vectors and the further columns, some genes at a time, in order of the symbols."""
    symbols = sorted(genes)
    for start in range(0, len(symbols), GENES):
        part = symbols[start : start + GENES]
        proteins = [genes[symbol] for symbol in part]
        rows = np.stack([vectors[protein.sequence] for isoforms_ in proteins for protein in isoforms_])
        further: list[list[Any]] = [
            [[protein.accession for protein in isoforms_] for isoforms_ in proteins],
            [len(isoforms_) for isoforms_ in proteins],
            [[len(protein.sequence) for protein in isoforms_] for isoforms_ in proteins],
            [
                [hashlib.sha256(protein.sequence.encode()).hexdigest() for protein in isoforms_]
                for isoforms_ in proteins
            ],
        ]
        columns = [pa.array(values, field.type) for values, field in zip(further, COLUMNS.arrow_schema, strict=True)]
        yield np.asarray(part), mean_over_isoforms(rows, [len(isoforms_) for isoforms_ in proteins]), *columns
