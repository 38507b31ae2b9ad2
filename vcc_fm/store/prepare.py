"""From checked sources to a cell store: align the genes, order the cells, write them, in bounded memory.

Two passes, and both are shared by all processes that take part. The first reads each source once, range of rows by
range of rows, and leaves chunks on disk: verified counts, sorted by the place that a cell will have. The second puts
the shards together from them. What is done survives an interruption. Labels and ranks of all cells are in files that
one process makes and all map; memory holds as much of the counts as ``data.memory_mb`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import (
    fingerprint,
    one_writer,
    read_json,
    remove_leftovers,
    whole_file,
    whole_folder,
    write_json,
)
from vcc_fm.ground.paths import expand
from vcc_fm.ground.work import WorkFolder, remove_work, work_folder
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.sources.alignment import Sources, open_sources
from vcc_fm.sources.anndata_file import changed_at
from vcc_fm.store.arrow import write_description, write_shard
from vcc_fm.store.cell_table import CellTable, cell_table
from vcc_fm.store.cells import SCHEMA, CellStore, cell_features
from vcc_fm.store.checksums import written
from vcc_fm.store.chunks import Chunk
from vcc_fm.store.description import LABELS, shard_name, write_store_json
from vcc_fm.store.filters import SourceFilters
from vcc_fm.store.first_pass import KEPT, checksum, forget_damaged, make_checksums, make_chunks
from vcc_fm.store.kept import Kept, keep_cells
from vcc_fm.store.merge import shard_batches

PIECES = 2
"""Form of what is kept until the store is whole."""
READING_BYTES = 100  # a stored value at the peak of reading a chunk: as stored, checked in float64, sorted, as saved
WRITING_SHARE = 2  # of the memory for a shard's counts: they, and as much again of a chunk's


def write_cell_store(
    final: Path,
    data: DataConfig,
    configs: list[SourceConfig],
    seed: int | None,
    fingerprint_: str,
    simulated: bool,
    state: PartialState,
    console: Console,
) -> None:
    """Write the cell store of ``configs`` as the folder ``final``, whole or not at all.

    Args:
        final: where the dataset and ``store.json`` go.
        data: gene axis rule, minimum cells, memory.
        configs: the sources, simulated ones included.
        seed: of the order inside groups; None keeps that of the sources.
        fingerprint_: of everything the store depends on.
        simulated: whether the cells are simulated; kept in ``store.json``.
        state: who takes part.
        console: where progress goes.

    Raises:
        UserError: a source is refused, sources disagree on the control label, or no cell is left.
    """
    if _is_whole(final, fingerprint_):
        # A run that was stopped after the last rename: its pieces are all that is left to do.
        _clear(final, state)
        return
    memory, everyone = data.memory_mb << 20, range(len(configs))
    with ExitStack() as stack:
        if state.is_main_process:
            for number in everyone:
                stack.enter_context(one_writer(_read_by(final, number)))
        work = _work(final, configs, fingerprint_, state)
        forget_damaged(work, everyone)
        _forget_damaged_shards(work)
        with open_sources(data, configs, work.path) as aligned:
            table, filters = _ordered(work, aligned, configs, seed)
            make_checksums(work, aligned.opened, everyone, console)
            chunks = make_chunks(work, memory // READING_BYTES, everyone, aligned, filters, table, console)
            kept = keep_cells(table, chunks, filters, aligned, configs, data.minimum_cells, work.path / KEPT)
            features = cell_features(len(aligned.axis), kept.largest, kept.names)
            _shards(work, kept, list(chain(*chunks)), features, memory // WRITING_SHARE, console)
            if state.is_main_process:
                meta = _describe(work, aligned, configs, kept) | {
                    "fingerprint": fingerprint_,
                    "simulated": simulated,
                    "order_seed": seed,
                }
                _assemble(final, work.path, len(kept.plan), features, meta)
        _clear(final, state)


def read_source(
    final: Path,
    data: DataConfig,
    configs: list[SourceConfig],
    seed: int,
    fingerprint_: str,
    name: str,
    state: PartialState,
    console: Console,
) -> None:
    """Leave the chunks of one source for :func:`write_cell_store`; jobs of other sources may run beside this one.

    Labels and genes of all sources are read as well, since they say where a cell belongs; whoever comes first does it.

    Args:
        final: where the dataset will be.
        data: as for the store.
        configs: all sources.
        seed: as for the store.
        fingerprint_: as for the store.
        name: of the source.
        state: of this process alone.
        console: where progress goes.

    Raises:
        UserError: there is no such source, or it is refused.
    """
    names = [config.name for config in configs]
    if name not in names:
        raise UserError(f"--source: choose one of {', '.join(names)}, found {name}")
    number = names.index(name)
    with one_writer(_read_by(final, number)):
        work = _work(final, configs, fingerprint_, state)
        forget_damaged(work, [number])
        with open_sources(data, configs, work.path) as aligned:
            table, filters = _ordered(work, aligned, configs, seed)
            make_checksums(work, aligned.opened, [number], console)
            make_chunks(work, (data.memory_mb << 20) // READING_BYTES, [number], aligned, filters, table, console)
        write_json(work.path / f"read-{number:04d}.json", {"owner": work.fingerprint})


def unread_sources(final: Path, configs: list[SourceConfig], fingerprint_: str) -> list[str]:
    """Names of the sources that :func:`read_source` has not finished."""
    folder, owner = work_folder(final), {"owner": _fingerprint(configs, fingerprint_)}
    notes = [folder / f"read-{number:04d}.json" for number in range(len(configs))]
    read = [note.exists() and read_json(note) == owner for note in notes]
    return [config.name for config, whole in zip(configs, read, strict=True) if not whole]


def _read_by(final: Path, number: int) -> Path:
    """What is locked while a source is read."""
    return final.with_name(f"{final.name}.source-{number:04d}")


def _work(final: Path, configs: list[SourceConfig], fingerprint_: str, state: PartialState) -> WorkFolder:
    return WorkFolder(final, _fingerprint(configs, fingerprint_), state)


def _fingerprint(configs: list[SourceConfig], fingerprint_: str) -> str:
    """Fingerprint of all that the pieces depend on, so that none of a source that changed since is mixed in."""
    return fingerprint([PIECES, fingerprint_, [changed_at(expand(config.path)) for config in configs]])


def _ordered(
    work: WorkFolder, aligned: Sources, configs: list[SourceConfig], seed: int | None
) -> tuple[CellTable, list[SourceFilters]]:
    """The order of all cells, and the filters of each source."""
    filters = [SourceFilters(source, config) for source, config in zip(aligned.opened, configs, strict=True)]
    return cell_table(aligned.opened, configs, seed, work.path / "order.safetensors"), filters


def _is_whole(final: Path, fingerprint_: str) -> bool:
    """Whether a store of this fingerprint is there, undamaged."""
    try:
        return CellStore(final).fingerprint == fingerprint_
    except UserError:
        return False


def _clear(final: Path, state: PartialState) -> None:
    """Take the pieces away, when all are past them."""
    state.wait_for_everyone()
    if state.is_main_process:
        remove_work(final)
        remove_leftovers(final)


def _forget_damaged_shards(work: WorkFolder) -> None:
    """Remove notes of shards that a failing machine left damaged: they are made again."""
    if work.state.is_main_process:
        for note in work.path.glob("data-*.json"):
            shard = note.with_suffix("")
            if not shard.exists() or shard.stat().st_size != read_json(note)["bytes"]:
                note.unlink()
    work.state.wait_for_everyone()


def _shards(
    work: WorkFolder,
    kept: Kept,
    chunks: list[Chunk],
    features: datasets.Features,
    memory: int,
    console: Console,
) -> None:
    """Second pass: the shards, each with a note beside it of what it is."""
    plan = kept.plan

    def path(number: int) -> Path:
        return work.path / f"{shard_name(number, len(plan))}.json"

    def make(number: int, progress: Callable[[int], None]) -> None:
        final, start = work.path / shard_name(number, len(plan)), plan[number][0][0]
        cuts = kept.cuts[:, number : number + 2].tolist()
        mine = [(chunk, first, last) for chunk, (first, last) in zip(chunks, cuts, strict=True) if last > first]

        def batches() -> Any:
            for (_, stop), batch in zip(
                plan[number], shard_batches(plan[number], kept.rows, mine, features, memory), strict=True
            ):
                yield batch
                progress(stop - start)

        with whole_file(final) as partial:
            note = write_shard(partial, features, batches())
        write_json(path(number), note | {"file": final.name})

    sizes = [batches[-1][1] - batches[0][0] for batches in plan]
    work.share(sizes, path, make, "cells", "prepare: write", console)


def _assemble(final: Path, work: Path, shards: int, features: datasets.Features, meta: dict[str, Any]) -> None:
    """Move the shards where they belong and describe them."""
    names = [shard_name(number, shards) for number in range(shards)]
    with whole_folder(final) as partial:
        notes = [read_json(work / f"{name}.json") for name in names]
        for name in names:
            # The note goes first: a shard without one is written again.
            (work / f"{name}.json").unlink()
            (work / name).rename(partial / name)
        write_description(partial, features, names, meta["fingerprint"], "", "")
        write_store_json(partial, meta | {"shards": notes})
    written(final, notes)


def _describe(work: WorkFolder, aligned: Sources, configs: list[SourceConfig], kept: Kept) -> dict[str, Any]:
    """What ``store.json`` says, so far as it follows from the cells."""
    return {
        "schema": SCHEMA,
        "cells": len(kept.rows.rank),
        "genes": aligned.axis.tolist(),
        "control": configs[0].control,
        "separator": configs[0].separator,
        **{names: kept.names[label] for label, names in LABELS.items()},
        "batch_source": kept.batch_source,
        "sources": _provenance(work, aligned, configs, kept),
        "relabelled_controls": sorted({c.control for c in configs if c.control != configs[0].control}),
    }


def _provenance(work: WorkFolder, aligned: Sources, configs: list[SourceConfig], kept: Kept) -> list[dict[str, Any]]:
    """What ``store.json`` says of each source."""
    return [
        {
            "name": source.name,
            "file": Path(config.path).name,
            "licence": config.licence,
            "citation": config.citation,
            "sha256": checksum(work, number),
            "matrix": config.matrix,
            "values": kept.evidence[number],
            "genes": len(source.genes),
            "genes_off_axis": int((aligned.columns[number] < 0).sum()),
            "missing_genes": np.flatnonzero(~aligned.measured[number]).tolist(),
            "cells": len(source),
            "dropped": kept.dropped[number],
            "repairs": source.repairs,
            "knock_down": kept.knock_down[number],
        }
        for number, (source, config) in enumerate(zip(aligned.opened, configs, strict=True))
    ]
