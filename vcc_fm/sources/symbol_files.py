"""Tables of gene names: HGNC's files, pairs of names, and Ensembl ids with their symbols."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.remote import open_local, read_bytes
from vcc_fm.sources.symbols import ENSEMBL_ID, NameKind, SymbolTable

# Names in small letters, what joins several values. Previous symbols first: where a name is both previous and alias to
# one gene, it was the gene's own symbol once.
_GENE = ("symbol", "approved symbol", "approved")
_NAMES: tuple[tuple[str, NameKind, str | None], ...] = (
    ("prev_symbol", "previous", "|"),
    ("previous symbols", "previous", ", "),
    ("alias_symbol", "alias", "|"),
    ("alias symbols", "alias", ", "),
    ("alias", "alias", None),
    ("ensembl_gene_id", "ensembl", "|"),
    ("ensembl gene id", "ensembl", ", "),
    ("ensembl id(supplied by ensembl)", "ensembl", ", "),
)
_EXPECTED = (
    "expected HGNC's complete set (columns symbol, prev_symbol, alias_symbol, ensembl_gene_id), its custom download "
    "(Approved symbol, Previous symbols, Alias symbols, Ensembl gene ID), alias and approved, or two columns of which "
    "one holds Ensembl gene ids"
)


def read_symbols(path: str, sha256: str | None = None) -> SymbolTable:
    """Read a table of gene names, plain or gzip, with tabs or, where its first line has none, commas.

    Of these forms, by the columns there are:

    * HGNC's complete set as published (``hgnc_complete_set.txt``): ``symbol``, ``status``, and any of ``prev_symbol``,
      ``alias_symbol`` and ``ensembl_gene_id``, several values joined by ``|``;
    * HGNC's custom download: ``Approved symbol``, ``Status`` if it is there, and any of ``Previous symbols``, ``Alias
      symbols``, ``Ensembl gene ID`` and ``Ensembl ID(supplied by Ensembl)``, several values joined by commas;
    * pairs, ``alias`` and ``approved``, which do not tell previous symbols from aliases: each counts as an alias;
    * two columns of any names, or of none, one with Ensembl gene ids: the other holds their symbols.

    Withdrawn entries are left out, and so is the version of an Ensembl id.

    Args:
        path: local path, ``https://`` or ``hf://``, as ``open_local``.
        sha256: what the file must have (hex).

    Raises:
        UserError: the file is missing, damaged, or has other columns or another SHA-256.
    """
    local = open_local(path, sha256=sha256)
    with read_bytes(local, "a table of gene names") as file:
        return _read(local, file.read())


def _read(local: Path, content: bytes) -> SymbolTable:
    first = content.partition(b"\n")[0].decode("utf-8-sig", "replace")
    separator = "\t" if "\t" in first else ","
    header = [name.strip().strip('"') for name in first.split(separator)]
    columns = [name.lower() for name in header]
    wanted = [n for n, name in enumerate(columns) if name in (*_GENE, "status", *(known for known, _, _ in _NAMES))]
    if len(columns) == 2:
        wanted = [0, 1]
    named = not any(re.match(ENSEMBL_ID, name) for name in header)
    table = pd.read_csv(
        io.BytesIO(content),
        sep=separator,
        dtype=str,
        keep_default_na=False,
        usecols=wanted,
        header=0 if named else None,
    )
    table.columns = pd.Index([columns[n] for n in wanted] if named else ["", " "])
    genes = [name for name in _GENE if name in table]
    names = [entry for entry in _NAMES if entry[0] in table]
    if genes and names:
        return SymbolTable(_names(table, genes[0], names))
    if len(columns) == 2:
        ids = [bool(len(values)) and bool(values.str.match(ENSEMBL_ID).mean() >= 0.9) for _, values in table.items()]
        if ids.count(True) == 1:
            symbols, of = table.iloc[:, ids.index(False)].str.strip(), table.iloc[:, ids.index(True)].str.strip()
            pairs = zip(symbols[symbols != ""], of[symbols != ""], strict=True)
            return SymbolTable((symbol, one, "ensembl") for symbol, one in pairs)
    raise UserError(f"{local}: not a table of gene names, found the columns {', '.join(header[:8])}; {_EXPECTED}")


def _names(
    table: pd.DataFrame, gene: str, columns: list[tuple[str, NameKind, str | None]]
) -> list[tuple[str, str, NameKind]]:
    """(Approved symbol, other name, kind of that name), the approved symbols themselves first."""
    withdrawn = table[gene].str.endswith("~withdrawn")
    if "status" in table:
        withdrawn |= table["status"] != "Approved"
    table = table[~withdrawn]
    approved = table[gene].str.strip()
    parts: list[tuple[str, str, NameKind]] = [(symbol, symbol, "approved") for symbol in approved]
    for column, kind, joined in columns:
        names = (table[column].str.split(joined).explode() if joined else table[column]).str.strip()
        names = names[names != ""]
        parts.extend(zip(approved.loc[names.index], names, [kind] * len(names), strict=True))
    return parts
