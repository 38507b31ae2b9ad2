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

from vcc_fm.encoders.proteins.composition import CompositionEncoder
from vcc_fm.encoders.proteins.encoder import ProteinEncoder, mean_over_isoforms
from vcc_fm.encoders.proteins.esm2_fair_esm import load_fair_esm
from vcc_fm.encoders.proteins.esm2_transformers import load_transformers
from vcc_fm.encoders.proteins.table import read_pt
from vcc_fm.encoders.proteins.token_batches import Cutting
from vcc_fm.encoders.shards import Shards
from vcc_fm.ground.files import sha256_file, whole_folder
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.embed import ProteinEncoderConfig
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


def make_protein_encoder(config: ProteinEncoderConfig, device: str) -> ProteinEncoder:
    """The encoder that a recipe asks for, its weights loaded.

    Raises:
        UserError: the model cannot be found or is not ESM2.
    """
    if config.encoder == "composition":
        return CompositionEncoder(config.kmer)
    place = "auto" if config.spread else device
    cutting = Cutting(config.window, config.overlap, config.tokens_per_batch)
    model = str(expand(config.model))
    if model.endswith(".pt"):
        return load_fair_esm(model, config.layer, config.precision, place, cutting)
    return load_transformers(model, config.revision, config.layer, config.precision, place, cutting)


def embed_proteins(
    final: Path, fasta: Path, config: ProteinEncoderConfig, fingerprint: str, state: PartialState, console: Console
) -> None:
    """Encode the proteins of ``fasta`` and write one vector a gene, the mean over its isoforms, into ``final``.

    All processes of ``state`` call it; each computes its share of the shards, and the first writes the store.

    Args:
        final: folder of the store; it appears when it is whole.
        fasta: the proteins.
        config: encoder and its settings.
        fingerprint: of everything the vectors depend on.
        state: who takes part.
        console: where progress goes.

    Raises:
        UserError: the FASTA or the model is refused.
    """
    read = read_proteins(fasta)
    genes = isoforms(read.proteins)
    encoder = make_protein_encoder(config, str(state.device))
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
        with whole_folder(final) as partial:
            meta = encoder.describe() | {"sequences": source | counted}
            write_embeddings(partial, "symbol", _rows(genes, vectors), encoder.width, fingerprint, meta, COLUMNS)
        work.remove()
        console.print(f"embed proteins: {read.report.text()}", markup=False, soft_wrap=True)
    state.wait_for_everyone()


def import_table(final: Path, table: Path, fingerprint: str) -> None:
    """Write the vectors of a ``.pt`` dictionary as the store ``final``; nothing is known of their sequences.

    Raises:
        UserError: the file is missing, or holds more than vectors of one length by symbol.
    """
    symbols, vectors = read_pt(table)
    order = np.argsort(symbols)
    empty = [pa.array([[]] * len(order), pa.list_(pa.string())), pa.array([0] * len(order), pa.int32())]
    empty += [pa.array([[]] * len(order), pa.list_(kind)) for kind in (pa.int32(), pa.string())]
    meta = {
        "encoder": "table",
        "parameters": {"file": table.name, "sha256": sha256_file(table)},
        "licence": "that of the file; it does not say how its vectors were made",
        "citation": "",
    }
    with whole_folder(final) as partial:
        chunk = (np.asarray(symbols)[order], vectors[order], *empty)
        write_embeddings(partial, "symbol", [chunk], vectors.shape[1], fingerprint, meta, COLUMNS)


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
