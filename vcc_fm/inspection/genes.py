"""How the genes of a matrix are named, and which column of var to read as symbols."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.genes import gene_columns

_ENSEMBL = r"ENS([A-Z]*)G\d{6,}"
_SPECIES = {"": "human", "MUS": "mouse"}
_WORD = r"[A-Za-z][\w.\-/()]*$"
_HUMAN = r"[A-Z][A-Z0-9\-.]*(?:orf\d+[A-Z]?)?[A-Z0-9\-.]*$"
_MOUSE = r"(?:[A-Z][a-z][a-z0-9\-.]*[A-Za-z0-9\-.]*|mt-.*|\d+[A-Z]\d+Rik)$"
_MADE_UP = r"(?i)(?:gene|feature|g|x|v|var)[-_. ]?\d+$"  # Gene1, GENE_2: numbers, spelled as somebody likes
_GENOME = r"(GRCh\d+|GRCm\d+|hg\d+|mm\d+)_+"
_LEAST_SPECIES = 0.05
_JOINED = rf"[A-Za-z][\w.\-]*[_|;:]{_ENSEMBL}(\.\d+)?$|{_ENSEMBL}(\.\d+)?[_|;:][A-Za-z][\w.\-]*$"
_MONTH = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_DATE = rf"(\d{{1,2}}-({_MONTH})|({_MONTH})-\d{{1,2}})$"
_MOST_MISSING = 0.1


@dataclass(frozen=True)
class NameFacts:
    """The names in the var index, or in a column of var."""

    column: str
    """``index`` for the index."""
    kind: str
    """symbols, Ensembl ids (human, mouse, or other), both joined, numbers, or words that are no names."""
    examples: list[str]
    duplicated: int
    """Number of names that come more than once."""
    duplicates: list[str]
    missing: int
    spaces: int
    """Names that start or end in a space."""


@dataclass(frozen=True)
class GeneFacts:
    """How genes are named."""

    names: list[NameFacts]
    symbols: str | None
    """What ``symbols`` of a recipe is to be; None where nothing looks like symbols."""
    incomplete: str | None
    """The column that it would be, did it not lack names; only where ``symbols`` is None."""
    species: str
    mitochondrial: int
    spike_ins: int
    ensembl_among_symbols: int
    """Genes that have an Ensembl id in the column of symbols."""
    made_unique: list[str]
    """Symbols that another symbol and a number are: A-1 beside A."""
    dates: list[str]
    """Symbols that a spreadsheet has turned into dates."""
    features: dict[str, int]
    """feature_types -> number, where var has that column (10x)."""


def read_genes(var: pd.DataFrame, where: str) -> GeneFacts:
    """Tell how the genes of a matrix are named.

    Args:
        var: table of the matrix' columns.
        where: file, for messages.
    """
    names = [_names("index", pd.Series(var.index, dtype=object))]
    for column in var.columns:
        text = pd.api.types.is_object_dtype(var[column]) or isinstance(
            var[column].dtype, pd.CategoricalDtype | pd.StringDtype
        )
        # A column with few words says something else of a gene: its chromosome, its biotype.
        if text and 2 * var[column].nunique() >= len(var):
            names.append(_names(str(column), var[column]))
    symbols = next((one.column for one in names if one.kind == "symbols" and _is_read(var, one.column, where)), None)
    lacking = [one.column for one in names if one.kind == "symbols" and 0 < one.missing <= _MOST_MISSING * len(var)]
    incomplete = lacking[0] if lacking and symbols is None else None
    chosen = _text(gene_names(var, symbols or incomplete or "index"))
    bare = chosen.str.replace(f"^{_GENOME}", "", regex=True)
    features = {}
    if "feature_types" in var.columns:
        features = {str(kind): int(number) for kind, number in var["feature_types"].value_counts().items() if number}
    return GeneFacts(
        names=names,
        symbols=symbols,
        incomplete=incomplete,
        species=_species(chosen),
        mitochondrial=int(bare.str.match("MT-|mt-").sum()),
        spike_ins=int(chosen.str.match("ERCC-").sum()),
        ensembl_among_symbols=int(chosen.str.match(_ENSEMBL).sum()) if symbols else 0,
        made_unique=_made_unique(chosen),
        dates=[str(name) for name in chosen[chosen.str.match(_DATE)]],
        features=features,
    )


def gene_names(var: pd.DataFrame, column: str) -> pd.Series:
    """[columns of the matrix] the names in the index of var (``index``), or in one of its columns."""
    return pd.Series(var.index, dtype=object) if column == "index" else var[column].astype(object)


def is_ensembl(names: pd.Series) -> bool:
    """Whether (nearly) all names ([n] str) are Ensembl ids of genes."""
    return bool(len(names) and names.str.match(_ENSEMBL).mean() >= 0.9)


def _made_unique(symbols: pd.Series) -> list[str]:
    stem = symbols.str.extract(r"^(.+)-\d$", expand=False)
    return [str(name) for name in symbols[stem.notna() & stem.isin(set(symbols))]]


def _is_read(var: pd.DataFrame, column: str, where: str) -> bool:
    try:
        gene_columns(var, column, "sum", where)
    except UserError:
        return False
    return True


def _text(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna().to_numpy(), "").astype(str)


def _names(column: str, values: pd.Series) -> NameFacts:
    raw = _text(values)
    text = raw.str.strip()
    missing = text.isin(["", "nan", "None", "<NA>"])
    present = text[~missing]
    repeated = present[present.duplicated()].unique()
    return NameFacts(
        column=column,
        kind=_kind(present),
        examples=[str(name) for name in present.iloc[:3]],
        duplicated=len(repeated),
        duplicates=[str(name) for name in repeated[:5]],
        missing=int(missing.sum()),
        spaces=int((raw != text).sum()),
    )


def _kind(text: pd.Series) -> str:
    if not len(text):
        return "nothing"
    if text.str.match(_JOINED).mean() >= 0.9:
        return "symbols joined with Ensembl ids"
    ensembl = text.str.extract(f"^{_ENSEMBL}", expand=False)
    if ensembl.notna().mean() >= 0.9:
        prefix = str(ensembl.mode().iloc[0])
        return f"Ensembl ids ({_SPECIES.get(prefix, f'ENS{prefix}G')})"
    if text.str.match(r"\d+(\.\d+)?$").mean() >= 0.9:
        return "numbers"
    words = text.str.match(_WORD) & (text.str.len() <= 40)
    return "symbols" if (words | text.str.match(_GENOME)).mean() >= 0.8 else "words that are no symbols"


def _species(symbols: pd.Series) -> str:
    """What the spelling says: human symbols are in capitals, those of the mouse begin with one."""
    genome = symbols.str.extract(f"^{_GENOME}", expand=False).str.lower()
    genomes = sorted({"human" if name.startswith(("grch", "hg")) else "mouse" for name in genome.dropna().unique()})
    if genomes:
        return " and ".join(genomes) + ", by prefix"
    ensembl = symbols.str.extract(_ENSEMBL, expand=False)
    if ensembl.notna().mean() >= 0.9:
        found = sorted({_SPECIES.get(str(prefix), f"ENS{prefix}G") for prefix in ensembl.dropna().unique()})
        return " and ".join(found) + ", by Ensembl id"
    long = symbols[(symbols.str.len() >= 3) & ~symbols.str.match(_MADE_UP)]
    mouse = float(long.str.match(_MOUSE).mean()) if len(long) else 0.0
    human = float(long.str.match(_HUMAN).mean()) if len(long) else 0.0
    spelled = np.array([human, mouse]) >= _LEAST_SPECIES
    if spelled.all():
        return f"human ({human:.0%}) and mouse ({mouse:.0%}), by spelling"
    if max(human, mouse) < 0.5 or 2 * len(long) < len(symbols):
        return "not told by spelling"
    return ("human" if human > mouse else "mouse") + ", by spelling"
