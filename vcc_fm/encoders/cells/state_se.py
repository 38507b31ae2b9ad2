"""SE ("State Embedding") as a cell encoder: its settings, and how much of a source's counts a checkpoint knows.

The encoder itself, which needs torch, is in ``state_se_encoder.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from vcc_fm.encoders import arc_terms
from vcc_fm.encoders.cells.encoder import CellEncoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.hub import expanded
from vcc_fm.ground.identity import model_identity
from vcc_fm.recipe.embed import CellEncoderSettings
from vcc_fm.recipe.section import Fraction, PositiveInt

if TYPE_CHECKING:
    from accelerate import PartialState
    from rich.console import Console

    from vcc_fm.encoders.cells.state_se_encoder import StateSeEncoder
    from vcc_fm.encoders.cells.state_se_tokens import Tokenizer
    from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint
    from vcc_fm.store.cells import CellStore

TOKENISED = 256
"""Cells tokenised at a time, 6 MB at 2,048 tokens."""

SAMPLE = 2000
"""Cells of a source whose counts tell how much of them the checkpoint knows."""

FILES = ("*.yaml", "*.pt", "*.safetensors", "*.ckpt")
"""Files of a checkpoint that say what it computes; its gene symbols have one of their own."""


class StateSeSettings(CellEncoderSettings):
    """Keys of ``embed.cells`` with ``encoder: state-se``."""

    encoder: Literal["state-se"] = Field("state-se", description="SE-600M and its like")
    model: str = Field(
        "arcinstitute/SE-600M",
        description="Hub id, or a folder with model.safetensors, protein_embeddings.pt and config.yaml",
    )
    revision: str | None = Field(None, description="revision of the Hub id; SE-600M's is pinned")
    heads: PositiveInt | None = Field(None, description="attention heads, if there is no config.yaml to tell")
    mode: Literal["exact", "compat"] = Field(
        "exact",
        description="exact: log1p of counts, and a vector does not depend on other cells; compat: as `state emb "
        "transform`",
    )
    scale_to: float | None = Field(
        None, gt=0, description="depth to which counts are scaled before log1p, UMI; null: not scaled"
    )
    pad_length: int = Field(2048, ge=2, description="tokens of a cell, CLS included")
    draw: int = Field(
        0, ge=0, description="seed that chooses among equal values, and the silent genes that fill a cell up"
    )
    coverage: Fraction = Field(
        0.5, description="refuse a source of which the checkpoint knows a smaller share of the counts"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic; auto is bfloat16 on a GPU and float32 elsewhere"
    )
    store_as: Literal["float32", "float16"] = Field("float32", description="numbers of the store")
    batch_cells: PositiveInt = Field(16, description="cells computed at a time on a GPU")

    @model_validator(mode="after")
    def _own_keys(self) -> StateSeSettings:
        if self.mode == "compat" and self.scale_to is not None:
            raise ValueError("embed.cells.scale_to has no meaning with embed.cells.mode=compat, which never scales")
        return self


class StateSe(CellEncoder):
    """A checkpoint of SE. Nothing is fitted, and no cell's vector depends on another cell."""

    Settings = StateSeSettings
    obsm = "X_state"
    none_because = "they express no gene that the checkpoint knows"
    terms = arc_terms.SE

    def __init__(self, settings: StateSeSettings):
        self.settings, self.dtype = settings, settings.store_as
        self._loaded: StateSeEncoder | None = None
        self._tokenizers: list[Tokenizer]
        self._vocabulary: list[dict[str, Any]]

    @property
    def _encoder(self) -> StateSeEncoder:
        assert self._loaded is not None
        return self._loaded

    @property
    def width(self) -> int:
        """Length of a cell's vector; without its weights where they are not loaded."""
        if self._loaded is not None:
            return self._loaded.width
        from vcc_fm.encoders.cells.state_se_weights import read_width

        return read_width(expanded(self.settings.model), self.settings.revision)

    @property
    def further(self) -> dict[str, int]:
        """The data set vector."""
        return {"dataset_vector": self._encoder.dataset_width}

    def identity(self) -> Any:
        """See :class:`CellEncoder`."""
        keys = self.settings.model_dump(mode="json", exclude={"model", "batch_cells"})
        return [keys, model_identity(self.settings.model, FILES)]

    def load(self, cells: CellStore, folder: Path, state: PartialState, console: Console) -> None:
        """Load the checkpoint and say how much of each source it knows.

        Raises:
            UserError: the checkpoint cannot be had, or knows too little of a source's counts.
        """
        import torch

        from vcc_fm.encoders.cells.state_se_encoder import SeSettings, StateSeEncoder
        from vcc_fm.encoders.cells.state_se_weights import load_state_se

        settings = self.settings
        checkpoint = load_state_se(expanded(settings.model), settings.revision, settings.heads)
        self._vocabulary = vocabulary_coverage(cells, checkpoint, settings.coverage)
        for line in self._vocabulary:
            console.print(
                f"embed cells: {line['source']}: {line['genes_known']:,} of {line['genes']:,} genes known, "
                f"with {line['counts_known']:.1%} of the counts",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        bf16 = settings.precision == "bfloat16" or (settings.precision == "auto" and state.device.type == "cuda")
        encoder = self._loaded = StateSeEncoder(
            checkpoint,
            cells.genes,
            SeSettings(settings.mode, settings.pad_length, settings.scale_to, settings.draw),
            torch.bfloat16 if bf16 else torch.float32,
            state.device,
            settings.batch_cells,
        )
        self._tokenizers = [
            encoder.tokenizer(mask, f"source {source['name']}")
            for mask, source in zip(cells.measured_by_source, cells.meta["sources"], strict=True)
        ]

    def encode(self, cells: CellStore, rows: np.ndarray, progress: Callable[[int], None]) -> np.ndarray:
        """Cell and data set vectors of ``rows``, side by side, [n, width + data set width] float32."""
        encoder = self._encoder
        vectors = np.empty((len(rows), encoder.width + encoder.dataset_width), np.float32)
        source = cells.batch_source[cells.batch[rows]]
        done = 0
        for number, tokenizer in enumerate(self._tokenizers):
            mine = np.flatnonzero(source == number)
            for start in range(0, len(mine), TOKENISED):
                part = mine[start : start + TOKENISED]
                tokens = tokenizer.tokenize(cells.sparse(rows[part]), int(rows[part[0]]))
                vectors[part] = np.hstack(encoder.embed(tokens, _after(done, progress)))
                done += len(part)
        return vectors

    def describe(self) -> dict[str, Any]:
        """See :class:`CellEncoder`; ``vocabulary`` says what of each source the checkpoint knows."""
        return self._encoder.describe() | {"vocabulary": self._vocabulary}


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """Progress of a part, told as that of the whole."""
    return lambda part: progress(done + part)


def vocabulary_coverage(cells: CellStore, checkpoint: SeCheckpoint, smallest: float) -> list[dict[str, Any]]:
    """How much of each source a checkpoint knows.

    Args:
        cells: the cells.
        checkpoint: its gene symbols count.
        smallest: share of a source's counts that must be in known genes.

    Returns:
        Per source: name, genes measured, genes known, and the share of the counts of evenly spaced cells
        (``SAMPLE`` at most) that is in known genes.

    Raises:
        UserError: a source has no known gene, or too small a share of its counts is in such.
    """
    from vcc_fm.encoders.cells.state_se_tokens import match_genes
    from vcc_fm.store.cells import evenly_spaced

    source_of_row = cells.batch_source[cells.batch]
    covered = []
    for number, source in enumerate(cells.meta["sources"]):
        measured = cells.measured_by_source[number]
        where = f"source {source['name']}"
        columns = [gene for gene, on in zip(cells.genes, measured, strict=True) if on]
        genes = match_genes(columns, checkpoint.names, where, minimum_share=0.0)
        rows = np.flatnonzero(source_of_row == number)
        sums = cells.sums(evenly_spaced(rows, SAMPLE))[measured]
        known = float(sums[genes.ids >= 0].sum() / max(sums.sum(), 1))
        if known < smallest:
            lost = [genes.columns[i] for i in np.argsort(-sums) if genes.ids[i] < 0][:5]
            raise UserError(
                f"{where}: {known:.0%} of its counts are in genes that the checkpoint knows, embed.cells.coverage "
                f"asks for {smallest:.0%}; most counts are lost in {', '.join(lost)}. Check the source key `symbols`, "
                "or lower embed.cells.coverage"
            )
        covered.append(
            {
                "source": source["name"],
                "genes": len(genes.columns),
                "genes_known": genes.matched,
                "counts_known": round(known, 4),
            }
        )
    return covered
