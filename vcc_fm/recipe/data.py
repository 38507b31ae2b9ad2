"""Sections on the data: sources, their labels and filters, the gene axis, a simulated screen."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from vcc_fm.recipe.section import Fraction, PositiveFloat, PositiveInt, Section, Sha256

_UNASSIGNED = (
    "unassigned, unassigned guide, not assigned, undetermined, unknown, unmapped, na, n/a, none, no guide, noguide, "
    "no sgrna, multiple, multiple guides, multiplet, multi, doublet, ambiguous"
).split(", ")


class SimulateConfig(Section):
    """A simulated screen, drawn from the recipe's seed."""

    contexts: list[str] = Field(["alpha", "beta", "gamma", "delta"], description="names of the simulated contexts")
    perturbations: PositiveInt = Field(48, description="number of CRISPRi target genes")
    genes: PositiveInt = Field(320, description="number of genes on the axis, targets included")
    cells: PositiveInt = Field(48, description="mean number of cells per perturbation and context")
    controls: PositiveInt = Field(400, description="number of non-targeting control cells per context")
    batches: PositiveInt = Field(2, description="number of technical batches per context")
    depth: float = Field(4000.0, gt=0, description="median depth of a cell, UMI")
    inert: Fraction = Field(0.15, description="fraction of perturbations without any effect besides the knock-down")
    shared: Fraction = Field(0.75, description="fraction of an effect's variance that is the same in all contexts")
    predictable: Fraction = Field(
        0.6, description="fraction of an effect beyond the generic response that follows from protein features"
    )
    combinations: int = Field(
        0, ge=0, description="number of combinations of two of the target genes, beside the single perturbations"
    )
    interaction: Fraction = Field(
        0.0, description="combinations: fraction of an effect's variance that is not the sum of the two single effects"
    )
    expression: Literal["normal", "measured"] = Field(
        "normal",
        description="how means and dispersions of genes are drawn. normal: log-normal means that contexts largely "
        "share, one level of dispersion; measured: as in a table of six cell contexts, whose means differ more",
    )
    programs: int = Field(
        0, ge=0, description="number of programs: genes that go up and down together from cell to cell"
    )
    program_sd: PositiveFloat = Field(
        0.3, description="programs: standard deviation over cells of a gene's log expression, all programs together"
    )
    depth_slope: float = Field(
        0.0,
        ge=0,
        description="standard deviation over genes of what a gene's log share gains per unit of the cell's log "
        "depth; 0: composition does not follow depth",
    )


class KnockDownConfig(Section):
    """Whether the target genes of a perturbation went down: cell-load's filter, for each context of a source."""

    perturbation: float = Field(
        0.30,
        gt=0,
        description="keep a perturbation only if its target gene's mean is below this fraction of the control mean",
    )
    cell: float = Field(
        0.50,
        gt=0,
        description="keep a cell of such a perturbation only if its target gene is below this fraction of the "
        "control mean",
    )
    minimum_cells: PositiveInt = Field(
        30, description="drop a perturbation in a context where these two keep fewer cells"
    )
    scale: Literal["linear", "log1p"] = Field(
        "linear", description="what is compared: counts per 10,000 of the cell's depth, or log1p of them"
    )
    unmeasured: Literal["drop", "keep"] = Field(
        "drop",
        description="a target gene that the source lacks, or that no control cell expresses: drop its cells, or "
        "keep them without checking",
    )


class QualityConfig(Section):
    """Which cells are good enough; the others are dropped and counted by reason."""

    minimum_depth: int = Field(0, ge=0, description="smallest depth of a cell over all genes of the file, UMI")
    minimum_genes: int = Field(0, ge=0, description="smallest number of genes with a count in a cell")
    guides_column: str | None = Field(None, description="obs column with the number of guides found in a cell")
    guides: list[int] = Field([1], min_length=1, description="numbers of guides with which a cell is kept")
    unassigned: list[str] = Field(
        _UNASSIGNED,
        description="labels of cells with no guide or with several, which are dropped; capitals do not matter, and "
        "_ and - "
        "count as spaces; a control label is never one; your list replaces this one",
    )
    knock_down: KnockDownConfig | None = Field(
        None,
        description="CRISPRi: drop perturbations and cells that were not knocked down ({} takes cell-load's "
        "thresholds); null: keep all",
    )

    @model_validator(mode="after")
    def _has_column(self) -> QualityConfig:
        if self.guides_column is None and self.guides != [1]:
            raise ValueError(f"quality.guides={self.guides} needs quality.guides_column, the column with the numbers")
        return self


class SourceConfig(Section):
    """One h5ad file, or zarr store of anndata, and where its labels are."""

    name: str = Field(
        description="short name of the source, used in the store and in messages; without a colon", pattern="^[^:]+$"
    )
    path: str = Field(description="path of the h5ad file or zarr store (folder or .zip); ${VARIABLE} is expanded")
    get: str | None = Field(None, description="where to get the file, printed when it is missing")
    sha256: Sha256 = Field(None, description="SHA-256 that the h5ad file must have (hex); checked when it is prepared")
    licence: str | None = Field(
        None, description="licence of the data, such as CC BY 4.0; it goes along with what is shared"
    )
    citation: str | None = Field(None, description="what to cite for the data")
    matrix: str = Field("X", description="matrix to read: X, raw, or layers/NAME")
    values: Literal["auto", "counts", "log1p-counts", "normalised", "log-normalised"] = Field(
        "auto",
        description="what the matrix holds: UMI counts, scaled per cell or not, log1p (base found) or not; verified",
    )
    totals_column: str | None = Field(
        None,
        description="obs column with each cell's depth before normalisation, UMI; proves the counts of cells with "
        "few values",
    )
    recovered: Fraction = Field(
        0.99,
        description="normalised values: at least this share of the cells must have proved counts; the others are "
        "dropped",
    )
    symbols: str = Field("index", description="var column with gene symbols, or `index` for the var index")
    duplicate_genes: Literal["refuse", "sum"] = Field("refuse", description="what to do with a symbol that repeats")
    perturbation_column: str | None = Field(
        description="obs column with the perturbation label; null: nothing was perturbed, all cells are controls"
    )
    control: str = Field("non-targeting", description="label of the control cells in that column")
    also_control: list[str] = Field(
        [], description="more labels that mean `control`; a * at the end stands for any text (NTC_*)"
    )
    separator: str = Field("+", min_length=1, description="text between the target genes of a combination")
    target_pattern: str | None = Field(
        None,
        description=r"regular expression for each part of a label, with one group that is the target gene: "
        r"(.+)_sg\d+; "
        "controls, and parts that do not match, stay as they are",
    )
    context_column: str | None = Field(None, description="obs column with the context (cell line or type)")
    context: str | None = Field(None, description="context of all cells, if no column holds it")
    batch_column: str | None = Field(
        None, description="obs column with the technical batch (gem group, lane, replicate)"
    )
    keep: dict[str, bool | int | str | list[str]] = Field(
        {}, description="obs column -> the value or values to keep; other cells are dropped and counted"
    )
    quality: QualityConfig = Field(QualityConfig(), description="which cells are good enough")

    @model_validator(mode="after")
    def _one_context(self) -> SourceConfig:
        if (self.context_column is None) == (self.context is None):
            raise ValueError(f"source {self.name!r}: give either context_column or context, not both and not neither")
        return self

    @field_validator("also_control")
    @classmethod
    def _names_labels(cls, labels: list[str]) -> list[str]:
        wrong = next((label for label in labels if not label.removesuffix("*").strip()), None)
        if wrong is not None:
            raise ValueError(f"also_control: {wrong!r} would be every label; give labels, or how they begin (NTC_*)")
        return labels

    @field_validator("target_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        try:
            groups = 1 if pattern is None else re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"target_pattern={pattern!r} is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(
                rf"target_pattern={pattern!r} has {groups} groups; put parentheses around the gene alone: (.+)_sg\d+"
            )
        return pattern


class NamesConfig(Section):
    """Other names of genes, for target genes, gene axis and proteins alike."""

    symbols: str | None = Field(
        None,
        description="gene names from HGNC (complete set, or a custom download), or a table of Ensembl ids and their "
        "symbols: a path, https:// or hf://",
    )
    sha256: Sha256 = Field(None, description="SHA-256 that the file of `symbols` must have (hex)")
    pins: dict[str, str] = Field({}, description="symbol -> gene that it stands for, where `symbols` is ambiguous")
    approved: bool = Field(
        False, description="bring genes and targets of all sources under approved symbols before there is an axis"
    )

    @model_validator(mode="after")
    def _has_symbols(self) -> NamesConfig:
        if self.approved and self.symbols is None:
            raise ValueError("data.names.approved has no meaning without data.names.symbols, the approved symbols")
        return self


class DataConfig(Section):
    """Which cells there are."""

    simulate: SimulateConfig | None = Field(None, description="simulate a screen instead of reading files")
    sources: list[SourceConfig] = Field([], description="h5ad files or zarr stores to read")
    store: str | None = Field(
        None,
        description="a cell store that was prepared before, as it is, instead: a folder, or "
        "hf://datasets/ORG/NAME/cells",
    )
    genes: str = Field("union", description="gene axis: union, intersection, or a text file with one symbol a line")
    names: NamesConfig = Field(NamesConfig(), description="other names of genes")
    minimum_cells: PositiveInt = Field(
        1, description="perturbations with fewer cells in a context are dropped and counted"
    )
    memory_mb: PositiveInt = Field(
        1024, description="memory for counts in each process of `prepare`, MB; the labels of all cells need more"
    )

    @property
    def separator(self) -> str:
        """What joins the target genes of a combination."""
        return self.sources[0].separator if self.sources else "+"

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        given = [key for key in ("simulate", "sources", "store") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(
                f"data: give one of simulate, sources and store; found {' and '.join(given) or 'none of them'}"
            )
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"data.sources: names must differ, found {names}")
        return self
