"""Sections on the frozen encoders."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vcc_fm.recipe.section import Fraction, PositiveInt, Section, Sha256


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
