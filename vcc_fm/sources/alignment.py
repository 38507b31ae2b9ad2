"""All sources of a recipe on one gene axis, under one name for each gene."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.genes import gene_axis, read_axis
from vcc_fm.sources.symbol_files import read_symbols
from vcc_fm.sources.symbols import approved_symbols


class Sources(NamedTuple):
    """Opened sources and their common axis.

    Attributes:
        opened: the sources.
        axis: [G] str, the gene axis.
        columns: per source, [g] int32: place of each of its genes on the axis, -1 where that lacks it.
        measured: [sources, G] bool: whether a source measured a gene of the axis; one that it did not is no zero.
    """

    opened: list[AnnDataSource]
    axis: np.ndarray
    columns: list[np.ndarray]
    measured: np.ndarray


@contextmanager
def open_sources(data: DataConfig, configs: list[SourceConfig], scratch: Path | None = None) -> Iterator[Sources]:
    """Open ``configs`` and align their genes as ``data`` says; closed at the end of the block.

    Args:
        data: gene axis rule, other names of genes.
        configs: the sources.
        scratch: folder for what is kept of them between processes and runs; None: nothing is.

    Raises:
        UserError: a source is refused, or the axis cannot be made.
    """
    names, pins = None, dict[str, str]()
    if data.names.approved and data.names.symbols is not None:
        names, pins = read_symbols(data.names.symbols, sha256=data.names.sha256), data.names.pins
    for symbol, gene in pins.items():
        if names is not None and names.genes(gene) != (gene,):
            raise UserError(
                f"data.names.pins.{symbol}: {gene} is no approved symbol in {data.names.symbols}; pin it to one"
            )
    with ExitStack() as stack:
        folders = [None if scratch is None else scratch / f"source-{n:04d}" for n in range(len(configs))]
        opened = [
            stack.enter_context(AnnDataSource(config, names, pins, folder))
            for config, folder in zip(configs, folders, strict=True)
        ]
        if names is not None and data.genes not in ("union", "intersection"):
            # A list of genes says how they are to be spelled: a gene has one name in a store, that of the list.
            approved = approved_symbols(read_axis(expand(data.genes)), names, pins).renamed
            for source in opened:
                source.respell({gene: symbol for symbol, gene in approved.items()})
        axis = gene_axis([source.genes for source in opened], data.genes)
        columns = [pd.Index(axis).get_indexer(pd.Index(source.genes)).astype(np.int32) for source in opened]
        yield Sources(opened, axis, columns, np.stack([np.isin(axis, source.genes) for source in opened]))
