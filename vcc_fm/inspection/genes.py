"""How the genes of a matrix are named, and which column of var to read as symbols."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.genes import gene_columns
from vcc_fm.sources.labels import missing_labels

GENOME = r"(GRCh\d+|GRCm\d+|hg\d+|mm\d+)_+"
"""A prefix of genes where cells of several genomes may be sequenced together."""
_ENSEMBL = r"ENS([A-Z]*)G\d{6,}"
_ENSEMBL_SPECIES = {"": "human", "MUS": "mouse"}
_WORD = r"[A-Za-z][\w.\-/()]*$"
_HUMAN = r"(?:GRCh|hg)\d+_|ENSG\d|(?!ENS[A-Z]*G\d)[A-Z][A-Z0-9\-.]*(?:orf\d+[A-Z]?)?[A-Z0-9\-.]*$"
_MOUSE = r"(?:GRCm|mm)\d+_|ENSMUSG\d|[A-Z][a-z][a-z0-9\-.]*[A-Za-z0-9\-.]*$|mt-|\d+[A-Z]\d+Rik$"
_MADE_UP = r"(?i)(?:gene|feature|g|x|v|var)[-_. ]?\d+$"  # Gene1, GENE_2: numbers, spelled as somebody likes
_LEAST_SPECIES = 0.05
_JOINED = rf"[A-Za-z][\w.\-]*[_|;:]{_ENSEMBL}(\.\d+)?$|{_ENSEMBL}(\.\d+)?[_|;:][A-Za-z][\w.\-]*$"
_MOST_MISSING = 0.1


@dataclass(frozen=True)
class NameFacts:
    """The names in the var index, or in a column of var."""

    column: str  # ``index`` for the index
    kind: str  # symbols, Ensembl ids (human, mouse, or other), both joined, numbers, or words that are no names
    examples: list[str]
    duplicated: int  # number of names that come more than once
    duplicates: list[str]
    missing: int


@dataclass(frozen=True)
class GeneFacts:
    """How genes are named."""

    names: list[NameFacts]
    symbols: str | None  # what ``symbols`` of a recipe is to be; None where nothing looks like symbols
    incomplete: str | None  # the column that it would be, did it not lack names; only where ``symbols`` is None
    species: str
    made_unique: list[str]  # symbols that another symbol and a number are: A-1 beside A
    features: dict[str, int]  # feature_types -> number, where var has that column (10x)

    @property
    def best(self) -> NameFacts:
        """The column of symbols, complete or not; the index where there is none."""
        wanted = self.symbols or self.incomplete or "index"
        return next(one for one in self.names if one.column == wanted)


def read_genes(var: pd.DataFrame, where: str) -> GeneFacts:
    """Tell how the genes of a matrix are named.

    Args:
        var: table of the matrix' columns.
        where: file, for messages.
    """
    names = [_names("index", _column(var, "index"))]
    for column in var.columns:
        # A column with few words says something else of a gene: its chromosome, its biotype.
        if not pd.api.types.is_numeric_dtype(var[column]) and 2 * var[column].nunique() >= len(var):
            names.append(_names(str(column), var[column]))
    possible = [one for one in names if one.kind == "symbols"]
    symbols = next((one.column for one in possible if _is_read(var, one.column, where)), None)
    lacking = [one.column for one in possible if 0 < one.missing <= _MOST_MISSING * len(var)]
    incomplete = lacking[0] if lacking and symbols is None else None
    chosen = _text(_column(var, symbols or incomplete or "index"))
    features = var["feature_types"].value_counts().to_dict() if "feature_types" in var.columns else {}
    return GeneFacts(
        names=names,
        symbols=symbols,
        incomplete=incomplete,
        species=_species(chosen),
        made_unique=_made_unique(chosen),
        features={str(kind): number for kind, number in features.items() if number},
    )


def known_names(var: pd.DataFrame, genes: GeneFacts) -> frozenset[str]:
    """The symbols that a recipe reads from ``var``; all names in it where nothing looks like symbols."""
    read = genes.symbols or genes.incomplete
    columns = [one.column for one in genes.names] if read is None else [read]
    return frozenset().union(*(_column(var, one).dropna().astype(str).str.strip() for one in columns)) - {""}


def is_ensembl(names: pd.Series) -> bool:
    """Whether (nearly) all names ([n] str) are Ensembl ids of genes."""
    return bool(len(names) and names.str.match(_ENSEMBL).mean() >= 0.9)


def _column(var: pd.DataFrame, column: str) -> pd.Series:
    return pd.Series(var.index, dtype=object) if column == "index" else var[column].astype(object)


def _text(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna().to_numpy(), "").astype(str)


def _is_read(var: pd.DataFrame, column: str, where: str) -> bool:
    try:
        gene_columns(var, column, "sum", where)
    except UserError:
        return False
    return True


def _names(column: str, values: pd.Series) -> NameFacts:
    missing = missing_labels(values)
    present = _text(values).str.strip()[~missing]
    repeated = present[present.duplicated()].unique()
    return NameFacts(
        column=column,
        kind=_kind(present),
        examples=[str(name) for name in present.iloc[:3]],
        duplicated=len(repeated),
        duplicates=[str(name) for name in repeated[:5]],
        missing=int(missing.sum()),
    )


def _kind(names: pd.Series) -> str:
    if not len(names):
        return "nothing"
    if names.str.match(_JOINED).mean() >= 0.9:
        return "symbols joined with Ensembl ids"
    if is_ensembl(names):
        prefix = str(names.str.extract(f"^{_ENSEMBL}", expand=False).mode().iloc[0])
        return f"Ensembl ids ({_ENSEMBL_SPECIES.get(prefix, f'ENS{prefix}G')})"
    if names.str.match(r"\d+(\.\d+)?$").mean() >= 0.9:
        return "numbers"
    words = names.str.match(_WORD) & (names.str.len() <= 40)
    return "symbols" if (words | names.str.match(GENOME)).mean() >= 0.8 else "words that are no symbols"


def _made_unique(symbols: pd.Series) -> list[str]:
    stem = symbols.str.extract(r"^(.+)-\d$", expand=False)
    return [str(name) for name in symbols[stem.notna() & stem.isin(set(symbols))]]


def _species(names: pd.Series) -> str:
    """Human symbols are in capitals, those of the mouse begin with one; ids and prefixes of the genome tell, too."""
    telling = names[(names.str.len() >= 3) & ~names.str.match(_MADE_UP)]
    human, mouse = (telling.str.match(spelled).mean() if len(telling) else 0.0 for spelled in (_HUMAN, _MOUSE))
    if min(human, mouse) >= _LEAST_SPECIES:
        return f"human ({human:.0%}) and mouse ({mouse:.0%}), by spelling"
    if max(human, mouse) < 0.5 or 2 * len(telling) < len(names):
        return "not told by spelling"
    return ("human" if human > mouse else "mouse") + ", by spelling"
