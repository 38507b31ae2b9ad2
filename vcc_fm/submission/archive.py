"""The archive that a platform takes: an uncompressed tar with the cells as a compressed h5ad, and small texts.

What it holds is read from the archive itself, and compared with where it came from, before the archive gets its name.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.words import listed
from vcc_fm.store.counts_file import CountsFile
from vcc_fm.submission.cells import Block, in_order
from vcc_fm.submission.challenge import PREDICTION, Challenge, Progress

_BYTES = 1 << 22
"""Read at a time."""
_DO = "it was taken away; make it again, on another disk if this happens again"


def write_cells(path: Path, challenge: Challenge, progress: Progress) -> int:
    """Write the cells of a challenge as an h5ad file without compression; returns the number of stored values.

    Raises:
        UserError: a cell or a perturbation is not what the platform takes.
    """
    values, done, total = 0, 0, len(challenge)
    counted: set[tuple[str, ...]] = set()
    with CountsFile(path, challenge.genes.tolist(), {}, np.float32, compressed=False) as file:
        for part in challenge.parts:
            columns = part.genes.get_indexer(challenge.genes)
            for block in part.blocks(challenge.genes):
                _check_depth(block, challenge, part.where)
                counted |= set(block.labels[block.depth > 0].itertuples(index=False, name=None))
                counts = in_order(block.counts[:, columns])
                values += counts.nnz
                challenge.check_values(values)
                file.append(challenge.values(counts), block.labels)
                done += len(block.depth)
                progress(done, total)
    groups = pd.concat([part.labels.drop_duplicates() for part in challenge.parts])
    if silent := [" in ".join(group) for group in groups.itertuples(index=False, name=None) if group not in counted]:
        raise UserError(
            f"{challenge.parts[0].where}: no cell of {listed(silent)} has a count of the challenge's genes"
        )
    return values


def _check_depth(block: Block, challenge: Challenge, where: str) -> None:
    deepest = block.depth.max(initial=0)
    if challenge.most_depth is not None and deepest > challenge.most_depth:
        raise UserError(
            f"{where}: a cell has {deepest:,} counts, the platform takes {challenge.most_depth:,}; set predict.depth"
        )


def pack(archive: Path, h5ad: Path, members: dict[str, bytes | None]) -> None:
    """Write an archive of ``members`` in their order, None standing for the cells; ``h5ad`` is used up.

    Owner and time are left out, so that equal cells make equal archives and nobody's name is in it.
    """
    packed = h5ad.with_name(PREDICTION)
    with (
        h5ad.open("rb") as source,
        pa.OSFile(str(packed), "wb") as file,
        pa.CompressedOutputStream(file, "zstd") as to,
    ):
        while piece := source.read(_BYTES):
            to.write(piece)
    h5ad.unlink()
    with tarfile.open(archive, "w") as tar, packed.open("rb") as cells:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = packed.stat().st_size if text is None else len(text)
            tar.addfile(member, cells if text is None else io.BytesIO(text))
    packed.unlink()


def unpack(archive: Path, h5ad: Path, members: dict[str, bytes | None]) -> None:
    """Read an archive back, the cells into the file ``h5ad``.

    Raises:
        UserError: it does not hold exactly ``members``, or a part of it is damaged.
    """
    with reading(archive, "an archive of cells", _DO), tarfile.open(archive, "r:") as tar:
        found = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        if list(found) != list(members):
            raise ValueError(f"it holds {listed(list(found))} where {listed(list(members))} are expected")
        for name, text in members.items():
            source = found[name]
            assert source is not None  # a member that is no file has another name or other bytes
            if text is not None and source.read() != text:
                raise ValueError(f"{name} is not what was written")
        with pa.CompressedInputStream(found[PREDICTION], "zstd") as cells, h5ad.open("wb") as file:
            while piece := cells.read(_BYTES):
                file.write(piece)


def compare(h5ad: Path, challenge: Challenge, archive: Path, progress: Progress) -> None:
    """Compare every gene, label and count of a file with what it was made from.

    Genes are found by their names in the file, and counts are computed back from its values.

    Raises:
        UserError: something differs.
    """
    with reading(archive, "what was written", _DO), h5py.File(h5ad) as file:
        genes, obs, matrix = read_elem(file["var"]).index, read_elem(file["obs"]), sparse_dataset(file["X"])
        done = 0
        if not genes.equals(challenge.genes) or matrix.shape != (len(challenge), len(genes)):
            raise ValueError(f"it has {matrix.shape[0]:,} cells of {matrix.shape[1]:,} genes, or others")
        for part in challenge.parts:
            places = part.genes.get_indexer(genes).astype(np.int32)
            for block in part.blocks(challenge.genes):
                stop = done + len(block.depth)
                labels, values = obs.iloc[done:stop], matrix[done:stop]
                restored = challenge.counts(values, block.depth), places[values.indices], values.indptr
                found = in_order(sp.csr_matrix(restored, block.counts.shape))
                same = all(
                    np.array_equal(getattr(found, array), getattr(block.counts, array))
                    for array in ("indptr", "indices", "data")
                )
                if not same or labels.astype(str).to_numpy().tolist() != block.labels.to_numpy().tolist():
                    raise ValueError(f"a cell from {done:,} to {stop - 1:,} differs from {part.where}")
                done = stop
                progress(done, len(challenge))
        if list(obs) != list(challenge.parts[0].labels):
            raise ValueError(f"obs has the columns {listed(list(obs))}")
