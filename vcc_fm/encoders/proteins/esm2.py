"""ESM2 as a protein encoder: its settings, and which loader its weights need.

The encoder itself, which needs torch, is in ``esm2_encoder.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from vcc_fm.encoders.proteins.encoder import JSON, ProteinShard, SequenceEncoder
from vcc_fm.encoders.proteins.token_batches import Cutting, plan_shards
from vcc_fm.ground.hub import expanded
from vcc_fm.ground.identity import model_identity
from vcc_fm.recipe.embed import SequenceEncoderSettings
from vcc_fm.recipe.section import PositiveInt, Section

if TYPE_CHECKING:
    from vcc_fm.encoders.proteins.esm2_encoder import Esm2Encoder


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


class Esm2Settings(SequenceEncoderSettings):
    """Keys of ``embed.proteins`` with ``encoder: esm2``."""

    encoder: Literal["esm2"] = Field("esm2", description="ESM2, mean over residues")
    model: str = Field(
        "facebook/esm2_t33_650M_UR50D", description="Hub id, folder, or an original fair-esm checkpoint (.pt)"
    )
    revision: str | None = Field(None, description="revision of the Hub id")
    untrained: UntrainedEsm2 | None = Field(
        None, description="use a small model with random weights instead of `model`, to try things out"
    )
    layer: int | None = Field(None, ge=0, description="layer whose output is taken; null means the last")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="arithmetic; auto is bfloat16 on a GPU and float32 elsewhere"
    )
    compile: bool = Field(
        True, description="on a GPU, compile a Hub model's layers (torch.compile): some seconds, then twice the rate"
    )
    window: PositiveInt = Field(1022, description="residues that are read at once, at most")
    overlap: int = Field(256, ge=0, description="residues that neighbouring windows of a long protein share")
    spread: bool = Field(False, description="spread a Hub model's layers over all GPUs, then memory (15B)")
    tokens_per_batch: PositiveInt = Field(4096, description="tokens in a batch, padding included")

    @model_validator(mode="after")
    def _fits(self) -> Esm2Settings:
        if self.untrained is not None and self.layer is not None and self.layer > self.untrained.layers:
            raise ValueError(
                f"embed.proteins.layer={self.layer}: embed.proteins.untrained has {self.untrained.layers} layers"
            )
        if self.spread and self.untrained is None and self.model.endswith(".pt"):
            raise ValueError("embed.proteins.spread: original checkpoints run on one device; use a folder or Hub id")
        return self


class Esm2(SequenceEncoder):
    """ESM2, from either form of its weights."""

    Settings = Esm2Settings

    def __init__(self, settings: Esm2Settings):
        self.settings = settings
        self._cutting = Cutting(settings.window, settings.overlap, settings.tokens_per_batch)
        self._encoder: Esm2Encoder

    @property
    def width(self) -> int:
        """Length of a vector; without its weights."""
        settings, model = self.settings, expanded(self.settings.model)
        if settings.untrained is not None:
            return settings.untrained.width
        if model.endswith(".pt"):
            from vcc_fm.encoders.proteins.esm2_encoder import choose_layer
            from vcc_fm.encoders.proteins.esm2_fair_esm import read_settings

            read = read_settings(Path(model))
            choose_layer(settings.layer, read.encoder_layers, Path(model).name)
            return int(read.encoder_embed_dim)
        from vcc_fm.encoders.proteins.esm2_transformers import read_config

        return read_config(model, settings.revision, settings.layer).hidden_size

    def identity(self) -> Any:
        """See :class:`ProteinEncoder`."""
        settings = self.settings.model_dump(mode="json", exclude={"fasta", "get", "sha256", "missing", "model"})
        return [settings, None if self.settings.untrained is not None else model_identity(self.settings.model)]

    def check(self, sequences: Iterable[str]) -> None:
        """Refuse what has no token, and a batch without room for a window."""
        plan_shards(sequences, self._cutting)

    def prepare(self, folder: Path) -> None:
        """Write the untrained model, if that is asked for."""
        if self.settings.untrained is not None:
            from vcc_fm.encoders.proteins.esm2_untrained import write_untrained

            shape = self.settings.untrained
            write_untrained(folder / "esm2-untrained", shape.width, shape.layers, shape.heads)

    def load(self, folder: Path, device: str) -> None:
        """See :class:`SequenceEncoder`."""
        settings = self.settings
        place = "auto" if settings.spread else device
        model = expanded(settings.model) if settings.untrained is None else str(folder / "esm2-untrained")
        if model.endswith(".pt"):
            from vcc_fm.encoders.proteins.esm2_fair_esm import load_fair_esm

            self._encoder = load_fair_esm(model, settings.layer, settings.precision, place, self._cutting)
        else:
            from vcc_fm.encoders.proteins.esm2_transformers import load_transformers

            self._encoder = load_transformers(
                model, settings.revision, settings.layer, settings.precision, place, self._cutting, settings.compile
            )

    def repairs(self, sequences: list[str]) -> dict[str, int]:
        """Letters that are read as another."""
        return self._encoder.repairs(sequences)

    def encode(self, sequences: list[str]) -> NDArray[np.float32]:
        """See :class:`SequenceEncoder`."""
        return self._encoder.encode(sequences)

    def plan(self, sequences: list[str]) -> Sequence[ProteinShard]:
        """Shards by tokens."""
        return self._encoder.plan(sequences)

    def encode_shard(self, shard: Any, progress: Callable[[int], None]) -> NDArray[np.float32]:
        """See :class:`SequenceEncoder`."""
        return self._encoder.encode_shard(shard, progress)

    def describe(self) -> dict[str, JSON]:
        """See :class:`ProteinEncoder`."""
        return self._encoder.describe()
