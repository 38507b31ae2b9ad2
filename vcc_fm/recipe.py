"""The recipe: one YAML file that says everything about a run; its keys, their types, defaults and meanings.

``recipe_file.py`` reads one. Paths may use environment variables (``${VCC_FM_DATA}/x.h5ad``); they are expanded when
a stage opens them, so that a recipe loads without its data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from vcc_fm.ground.errors import UserError, shown

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Sha256 = Annotated[str | None, Field(pattern="^[0-9a-fA-F]{64}$")]

_UNASSIGNED = (
    "unassigned, unassigned guide, not assigned, undetermined, unknown, unmapped, na, n/a, none, no guide, noguide, "
    "no sgrna, multiple, multiple guides, multiplet, multi, doublet, ambiguous"
).split(", ")


class Section(BaseModel):
    """A part of the recipe: immutable, no unknown keys, no silent conversion of types, finite numbers, no repeats."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _each_once(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list):
            repeated = next((one for i, one in enumerate(value) if one in value[:i]), None)
            if repeated is not None:
                raise ValueError(f"{info.field_name}: {repeated!r} stands twice; name each once")
        return value


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


class KnockDownConfig(Section):
    """Whether the target genes of a perturbation went down: cell-load's filter, for each context of a source."""

    perturbation: float = Field(
        0.30, gt=0, description="a perturbation stays if its cells' mean of the target gene is below this x controls'"
    )
    cell: float = Field(
        0.50, gt=0, description="a cell of such a perturbation stays if its target gene is below this x controls' mean"
    )
    minimum_cells: PositiveInt = Field(
        30, description="a perturbation with fewer cells left by the two in a context is dropped there"
    )
    scale: Literal["linear", "log1p"] = Field(
        "linear", description="what is compared: counts per 10,000 of the cell's depth, or log1p of them"
    )
    unmeasured: Literal["drop", "keep"] = Field(
        "drop", description="a target gene that the source lacks or no control cell expresses: drop or do not judge"
    )


class QualityConfig(Section):
    """Which cells are good enough; the others are dropped and counted by reason."""

    minimum_depth: int = Field(0, ge=0, description="smallest depth of a cell over all genes of the file, UMI")
    minimum_genes: int = Field(0, ge=0, description="smallest number of genes with a count in a cell")
    guides_column: str | None = Field(None, description="obs column with the number of guides found in a cell")
    guides: list[int] = Field([1], min_length=1, description="numbers of guides with which a cell is kept")
    unassigned: list[str] = Field(
        _UNASSIGNED,
        description="perturbation labels of cells with no guide or several; capitals do not matter, and _ and - are "
        "spaces; a control is never one; a list that is given replaces this one",
    )
    knock_down: KnockDownConfig | None = Field(
        None, description="CRISPRi: drop what was not knocked down ({}: with cell-load's thresholds); null: keep all"
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
    matrix: str = Field("X", description="matrix to read: X, raw, or layers/NAME")
    values: Literal["auto", "counts", "log1p-counts", "normalised", "log-normalised"] = Field(
        "auto",
        description="what the matrix holds: UMI counts, scaled per cell or not, log1p (base found) or not; verified",
    )
    totals_column: str | None = Field(
        None, description="obs column with each cell's depth before normalisation, UMI; settles cells with few values"
    )
    recovered: Fraction = Field(
        0.99, description="normalised values: smallest share of cells with proved counts; the others are dropped"
    )
    symbols: str = Field("index", description="var column with gene symbols, or `index` for the var index")
    duplicate_genes: Literal["refuse", "sum"] = Field("refuse", description="what to do with a symbol that repeats")
    perturbation_column: str = Field(description="obs column with the perturbation label")
    control: str = Field("non-targeting", description="label of the control cells in that column")
    also_control: list[str] = Field(
        [], description="further labels that are read as `control`; a * at the end stands for any text (NTC_*)"
    )
    separator: str = Field("+", min_length=1, description="what joins the target genes of a combination")
    target_pattern: str | None = Field(
        None,
        description=r"regular expression of a whole part of a label, with one group, the target gene: (.+)_sg\d+; "
        "controls, and parts that do not match, are left as they are",
    )
    context_column: str | None = Field(None, description="obs column with the context (cell line or type)")
    context: str | None = Field(None, description="context of all cells, when no column holds it")
    batch_column: str | None = Field(
        None, description="obs column with the technical batch (gem group, lane, replicate)"
    )
    keep: dict[str, bool | int | str | list[str]] = Field(
        {}, description="obs column -> value or values; cells with another value are dropped and counted"
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


class DataConfig(Section):
    """Which cells there are."""

    simulate: SimulateConfig | None = Field(None, description="simulate a screen instead of reading files")
    sources: list[SourceConfig] = Field([], description="h5ad files or zarr stores to read")
    genes: str = Field("union", description="gene axis: union, intersection, or a text file with one symbol a line")
    symbols: str | None = Field(
        None,
        description="gene names from HGNC, or Ensembl ids and their symbols: genes and targets of all sources go "
        "under approved symbols",
    )
    symbols_sha256: Sha256 = Field(None, description="SHA-256 that the file of `symbols` must have (hex)")
    pins: dict[str, str] = Field({}, description="symbol -> gene that it stands for, where data.symbols is ambiguous")
    minimum_cells: PositiveInt = Field(
        1, description="perturbations with fewer cells in a context are dropped and counted"
    )
    memory_mb: PositiveInt = Field(
        1024, description="memory for counts in each process of `prepare`, MB; labels of all cells come on top"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        if self.pins and self.symbols is None:
            raise ValueError("data.pins has no meaning without data.symbols, the other names of genes")
        if (self.simulate is None) == (not self.sources):
            raise ValueError("data: give either simulate or sources, not both and not neither")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"data.sources: names must differ, found {names}")
        return self


class CellEncoderConfig(Section):
    """How a control cell becomes a vector."""

    encoder: Literal["expression", "state-se"] = Field(
        "expression",
        description="expression: PCA of log-normalised expression, control cells only; state-se: SE-600M and its like",
    )
    width: PositiveInt = Field(32, description="expression: number of components")
    target_sum: float = Field(1e4, gt=0, description="expression: depth to which a cell is scaled before log1p, UMI")
    model: str = Field(
        "arcinstitute/SE-600M",
        description="state-se: Hub id, or a folder with model.safetensors, protein_embeddings.pt and config.yaml",
    )
    revision: str | None = Field(None, description="state-se: revision of the Hub id; SE-600M's is pinned")
    heads: PositiveInt | None = Field(None, description="state-se: attention heads, where no config.yaml tells")
    mode: Literal["exact", "compat"] = Field(
        "exact",
        description="state-se: exact: log1p of counts, same vector in any company; compat: as `state emb transform`",
    )
    scale_to: float | None = Field(
        None, gt=0, description="state-se: depth to which counts are scaled before log1p, UMI; null: not scaled"
    )
    pad_length: int = Field(2048, ge=2, description="state-se: tokens of a cell, CLS included")
    draw: int = Field(0, ge=0, description="state-se: seed of ties and of the silent genes that fill a cell up")
    coverage: Fraction = Field(
        0.5, description="state-se: smallest share of a source's counts in genes that the checkpoint knows"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="state-se: arithmetic; auto is bfloat16 on a GPU and float32 elsewhere"
    )
    store_as: Literal["float32", "float16"] = Field("float32", description="state-se: numbers of the store")
    batch_cells: PositiveInt = Field(16, description="state-se: cells computed at a time on a GPU")

    @model_validator(mode="after")
    def _own_keys(self) -> CellEncoderConfig:
        if self.mode == "compat" and self.scale_to is not None:
            raise ValueError("embed.cells.scale_to has no meaning with embed.cells.mode=compat, which never scales")
        return self


class UntrainedEsm2(Section):
    """Shape of an ESM2 with random weights."""

    width: PositiveInt = Field(64, description="length of a vector")
    layers: PositiveInt = Field(2, description="transformer layers")
    heads: PositiveInt = Field(4, description="attention heads; they share the width evenly")

    @model_validator(mode="after")
    def _divides(self) -> UntrainedEsm2:
        # The rotation of positions turns pairs of a head's channels.
        if self.width % (2 * self.heads):
            raise ValueError(
                f"embed.proteins.untrained: width={self.width} is not a multiple of 2 x heads={self.heads}"
            )
        return self


class ProteinEncoderConfig(Section):
    """How a target gene becomes a vector."""

    encoder: Literal["composition", "esm2", "table"] = Field(
        "composition",
        description="composition: k-mer frequencies, no weights; esm2: mean over residues; table: vectors as given",
    )
    fasta: str | None = Field(
        None, description="protein sequences (UniProt, Ensembl pep, or symbol first): a path, https:// or hf://"
    )
    get: str | None = Field(None, description="where to get the file, printed when it is missing")
    sha256: Sha256 = Field(None, description="SHA-256 that the file of `fasta` must have (hex)")
    table: str | None = Field(
        None, description="table: a .pt dictionary symbol -> vector, such as ESM2_pert_features.pt; needs no fasta"
    )
    kmer: Literal[1, 2, 3] = Field(2, description="composition: longest k-mer counted, residues")
    model: str = Field(
        "facebook/esm2_t33_650M_UR50D",
        description="esm2: Hub id, folder, or an original fair-esm checkpoint (.pt)",
    )
    revision: str | None = Field(None, description="esm2: revision of the Hub id")
    untrained: UntrainedEsm2 | None = Field(
        None, description="esm2: in place of `model`, one that is made here with random weights, to try things out"
    )
    layer: int | None = Field(None, ge=0, description="esm2: layer whose output is taken; null means the last")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="esm2: arithmetic; auto is bfloat16 on a GPU and float32 elsewhere"
    )
    window: PositiveInt = Field(1022, description="esm2: longest stretch read at once, residues")
    overlap: int = Field(256, ge=0, description="esm2: residues that neighbouring windows of a long protein share")
    spread: bool = Field(False, description="esm2: spread a Hub model's layers over all GPUs, then memory (15B)")
    tokens_per_batch: PositiveInt = Field(4096, description="esm2: tokens in a batch, padding included")
    symbols: str | None = Field(
        None, description="gene names from HGNC (complete set, or alias and approved): other names of a gene are found"
    )
    symbols_sha256: Sha256 = Field(None, description="SHA-256 that the file of `symbols` must have (hex)")
    pins: dict[str, str] = Field({}, description="symbol -> gene that it stands for, where names are ambiguous")
    missing: Literal["refuse", "learned", "drop"] = Field(
        "refuse",
        description="target gene without a vector: refuse to train, a learned vector of its own, or drop its cells",
    )

    @model_validator(mode="after")
    def _one_source(self) -> ProteinEncoderConfig:
        if (self.encoder == "table") != (self.table is not None):
            raise ValueError("embed.proteins.encoder=table and embed.proteins.table belong together; one is missing")
        if self.untrained is not None and self.encoder != "esm2":
            raise ValueError(f"embed.proteins.untrained needs embed.proteins.encoder=esm2, found {self.encoder}")
        if self.untrained is not None and self.layer is not None and self.layer > self.untrained.layers:
            raise ValueError(
                f"embed.proteins.layer={self.layer}: embed.proteins.untrained has {self.untrained.layers} layers"
            )
        if self.spread and self.untrained is None and self.model.endswith(".pt"):
            raise ValueError("embed.proteins.spread: original checkpoints run on one device; use a folder or Hub id")
        return self


class EmbedConfig(Section):
    """The frozen encoders."""

    cells: CellEncoderConfig = Field(CellEncoderConfig(), description="encoder of cells")
    proteins: ProteinEncoderConfig = Field(ProteinEncoderConfig(), description="encoder of protein sequences")


class SplitConfig(Section):
    """What is held out. A context's control cells are never held out: they are what a prediction starts from."""

    hold_out: Literal["perturbations", "contexts", "few-shot", "table"] = Field(
        description="perturbations: everywhere; contexts: all their perturbations; few-shot: some perturbations in "
        "`contexts`; table: a cell-load TOML"
    )
    contexts: list[str] = Field(
        [], description="held-out contexts, in turn if there are folds (contexts), or target contexts (few-shot)"
    )
    test: Fraction | PositiveInt | list[str] = Field(
        0.3, description="held-out perturbations: a fraction, a number, or labels (perturbations and few-shot)"
    )
    validation: Fraction | list[str] = Field(
        0.15,
        description="of what remains for training: a fraction of the perturbations (contexts: of the groups of a "
        "context and a perturbation), or labels, kept for choosing checkpoints; table: the table says",
    )
    unseen: Fraction = Field(
        0.0, description="few-shot: fraction of the test perturbations that is held out of every other context too"
    )
    folds: PositiveInt = Field(
        1,
        description="number of folds, scored together: parts of all perturbations (perturbations), or of `contexts` "
        "(contexts), each held out once",
    )
    table: str | None = Field(
        None, description="table: path of the cell-load TOML ([training], [zeroshot], [fewshot])"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.hold_out in ("contexts", "few-shot") and not self.contexts:
            raise ValueError(f"split.hold_out={self.hold_out} needs split.contexts")
        if self.hold_out == "table" and self.table is None:
            raise ValueError("split.hold_out=table needs split.table, the path of a cell-load TOML")
        if self.folds > 1 and self.hold_out not in ("perturbations", "contexts"):
            raise ValueError(
                f"split.folds={self.folds} needs split.hold_out=perturbations or contexts, found {self.hold_out}"
            )
        if self.hold_out == "contexts" and self.folds > len(self.contexts):
            raise ValueError(f"split.folds={self.folds} is more than the {len(self.contexts)} of split.contexts")
        if self.contexts and self.hold_out in ("perturbations", "table"):
            raise ValueError(f"split.contexts={self.contexts} has no meaning with split.hold_out={self.hold_out}")
        if self.table is not None and self.hold_out != "table":
            raise ValueError(f"split.table={self.table} needs split.hold_out=table, found {self.hold_out}")
        if self.unseen > 0 and self.hold_out != "few-shot":
            raise ValueError(f"split.unseen={self.unseen} needs split.hold_out=few-shot, found {self.hold_out}")
        return self


class LoraSettings(Section):
    """Low-rank adapters on the backbone's linear layers (`peft`)."""

    r: PositiveInt = Field(8, description="rank of the adapters")
    alpha: PositiveInt = Field(16, description="scale of the adapters: alpha / r")
    dropout: Fraction = Field(0.0, description="dropout on the adapters' input")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="layers of the backbone to adapt"
    )


class DecoderSettings(Section):
    """The network that turns control cells and perturbation tokens into counts."""

    base: str = Field(
        "scratch",
        description="scratch (train everything), pretrain (the base this recipe makes), a folder or a Hub id",
    )
    revision: str | None = Field(None, description="revision of the Hub id")
    backbone: dict[str, str | int | float | bool | None] = Field(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 1,
        },
        description="transformers config of a backbone made from scratch: model_type and its own keys",
    )
    gene_rank: PositiveInt = Field(32, description="rank of the gene-axis terms")
    response: bool = Field(
        True,
        description="give what the same perturbation did in other contexts (leave-one-out); of a combination that was "
        "measured in none, the sum of what its single perturbations did",
    )
    code_dropout: Fraction = Field(0.3, description="share of sets whose learned context and batch codes are hidden")
    response_dropout: Fraction = Field(0.3, description="share of sets whose known response is hidden")
    lora: LoraSettings = Field(LoraSettings(), description="adapters, used with every base but scratch")


class LossWeights(Section):
    """Weights of the three loss terms, each averaged over genes and sets."""

    likelihood: float = Field(
        1.0, ge=0, description="negative-binomial negative log-likelihood, nats per gene and cell"
    )
    energy: float = Field(0.1, ge=0, description="energy distance between predicted and measured sets, log1p CP10k")
    delta: float = Field(1.0, ge=0, description="squared error of the set's pseudobulk log ratio to control")


class TrainConfig(Section):
    """One training phase. The trajectory depends on `batch_sets`, never on how devices share it."""

    contexts: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="contexts to train on; null means every one with training cells"
    )
    steps: PositiveInt = Field(description="optimiser steps")
    context_weights: dict[str, PositiveFloat] = Field(
        {}, description="context -> how many times an epoch goes through its cells, fractions allowed; 1 if not named"
    )
    perturbation_weights: dict[str, PositiveFloat] = Field(
        {}, description="the same for perturbations; the two weights of a group are multiplied"
    )
    set_size: PositiveInt = Field(32, description="cells in a set (S)")
    batch_sets: PositiveInt = Field(8, description="sets in an optimiser step, over all devices")
    micro_sets: PositiveInt | None = Field(
        None, description="sets on a device at a time; null: batch_sets / processes"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    warmup: Fraction = Field(0.1, description="share of the steps with rising learning rate, cosine decay follows")
    clip: PositiveFloat | None = Field(1.0, description="largest global norm of the gradient; null: no limit")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="arithmetic of the backbone; heads and losses stay fp32"
    )
    loss: LossWeights = Field(LossWeights(), description="weights of the loss terms")
    eval_every: PositiveInt = Field(100, description="steps between evaluations on the validation split")
    eval_sets: PositiveInt = Field(256, description="most sets in an evaluation")
    log_every: PositiveInt = Field(20, description="steps between log lines")
    checkpoint_every: PositiveInt = Field(200, description="steps between checkpoints to resume from")
    keep_checkpoints: PositiveInt = Field(2, description="checkpoints kept")
    prefetch: PositiveInt = Field(2, description="batches assembled ahead by a background thread")
    processes: PositiveInt | None = Field(None, description="processes that must take part; another number is refused")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = Field("tensorboard", description="where curves go")

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        if self.micro_sets is not None and self.batch_sets % self.micro_sets:
            raise ValueError(
                f"train.batch_sets={self.batch_sets} is not a multiple of train.micro_sets={self.micro_sets}"
            )
        return self


class PredictConfig(Section):
    """What is emitted."""

    cells: Literal["measured"] | PositiveInt = Field(
        "measured", description="cells per context and perturbation: as many as were measured, or a number"
    )
    depth: Literal["control"] | float = Field(
        "control", description="depth of a predicted cell: its control cell's, or UMI"
    )
    set_size: PositiveInt = Field(64, description="control cells shown to the decoder at once (S)")
    emitter: Literal["paired-controls", "negative-binomial"] = Field(
        "paired-controls",
        description="what a predicted cell is made of: its control cell's own counts, changed by the predicted ratio, "
        "or a distribution around the control profile, in which genes are independent",
    )
    effect_scale: Literal["validation"] | Annotated[float, Field(ge=0, le=100)] = Field(
        1.0,
        description="factor on predicted log ratios, the baselines' too: 0 to 100, or chosen on validation",
    )

    @model_validator(mode="after")
    def _depth_of_a_cell(self) -> PredictConfig:
        if self.depth != "control" and not 0 < self.depth < 1_000_000:
            raise ValueError(
                f"predict.depth={self.depth:g}: give UMI above 0 and below 1,000,000, the most that the scorer takes, "
                "or control"
            )
        return self


class ScoreConfig(Section):
    """How predictions are judged."""

    preset: Literal["vcc2026"] = Field("vcc2026", description="cell-eval2 preset")
    baselines: list[Literal["control", "mean-response", "other-contexts", "additive", "embedding-transfer"]] = Field(
        ["control", "mean-response", "other-contexts"],
        min_length=1,
        description="untrained predictors in the same table; additive: combinations as the sum of their singles; "
        "embedding-transfer: SE's gene decoder, needs state-se",
    )


class Recipe(Section):
    """Everything about a run."""

    name: str = Field(
        description="name of the run: its folders are embeddings/NAME and runs/NAME", pattern=r"^\w[\w.-]*$"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")
    output: str = Field(".", description="folder that holds embeddings/ and runs/")
    data: DataConfig = Field(description="which cells there are")
    embed: EmbedConfig = Field(EmbedConfig(), description="the frozen encoders")
    split: SplitConfig = Field(description="what is held out")
    decoder: DecoderSettings = Field(DecoderSettings(), description="the network")
    pretrain: TrainConfig | None = Field(None, description="training of the base, when decoder.base is pretrain")
    train: TrainConfig = Field(description="training of the decoder")
    predict: PredictConfig = Field(PredictConfig(), description="what is emitted")
    score: ScoreConfig = Field(ScoreConfig(), description="how predictions are judged")

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        # Files beside the folders are named after it.
        if len(name.encode()) > _LONGEST_NAME - 55:
            raise ValueError(f"name: {shown(name)} has {len(name.encode())} bytes; 200 at most")
        return name

    @model_validator(mode="after")
    def _base(self) -> Recipe:
        if (self.decoder.base == "pretrain") != (self.pretrain is not None):
            raise ValueError("decoder.base=pretrain and a pretrain section belong together; one of them is missing")
        return self

    @model_validator(mode="after")
    def _gene_decoder(self) -> Recipe:
        if "embedding-transfer" in self.score.baselines and self.embed.cells.encoder != "state-se":
            raise ValueError(
                "score.baselines: embedding-transfer decodes with SE and needs embed.cells.encoder=state-se, found "
                f"{self.embed.cells.encoder}; change the encoder or leave the baseline out"
            )
        return self

    @property
    def embeddings_folder(self) -> Path:
        """Where the stores of this recipe are."""
        return expand(self.output) / "embeddings" / self.name

    @property
    def run_folder(self) -> Path:
        """Where checkpoints, predictions and scores of this recipe are."""
        return expand(self.output) / "runs" / self.name

    def public(self) -> dict[str, Any]:
        """The resolved recipe as JSON, to be shown or stored: variables unexpanded, addresses without secrets."""
        content: dict[str, Any] = json.loads(self.model_dump_json(), object_hook=_without_secrets)
        return content

    def fingerprint(self) -> str:
        """SHA-256 of the resolved recipe."""
        return fingerprint(self.model_dump(mode="json"))


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of any JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_VARIABLE = re.compile(r"\$(?:\{([^}]*)\}|(\w+))")
_ADDRESS = re.compile(r"(\w[\w+.-]*://)(?:[^\s/?#]*@)?([^\s?#]*)\S*")
_LONGEST_NAME = 255
"""Bytes of a file's name: no file system of ours has longer ones."""


def expand(path: str) -> Path:
    """A path of a recipe as the file system knows it: ``${VARIABLE}`` and ``~`` are expanded.

    Raises:
        UserError: a variable is not set, there is no such user, or no file can have the name.
    """
    unset = [braced or bare for braced, bare in _VARIABLE.findall(path) if (braced or bare) not in os.environ]
    if unset:
        raise UserError(
            f"{path}: the environment variable {unset[0]} is not set; point it at the folder with the data"
        )
    expanded = os.path.expanduser(os.path.expandvars(path))
    if expanded.startswith("~"):
        raise UserError(f"{path}: there is no home folder of that user; write ./~ for a name that begins so")
    if "\0" in expanded or any(len(os.fsencode(name)) > _LONGEST_NAME for name in expanded.split("/")):
        raise UserError(f"{shown(path)}: no file can have that name; shorten it, to {_LONGEST_NAME} bytes at most")
    return Path(expanded)


def without_secrets(text: str) -> str:
    """A text with its addresses stripped of user, query and fragment, any of which may hold a token."""
    return _ADDRESS.sub(r"\1\2", text)


def _without_secrets(section: dict[str, Any]) -> dict[str, Any]:
    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        return without_secrets(value) if isinstance(value, str) else value

    return {key: clean(value) for key, value in section.items()}
