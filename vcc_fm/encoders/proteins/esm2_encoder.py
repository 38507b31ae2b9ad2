"""ESM2: a protein's vector is the mean of its residues' representations.

The representation of a residue is the output of a transformer layer, the last one by default and then after the final
layer norm, as fair-esm's ``repr_layers`` gives it; layer 0 is the token embedding, rescaled for token dropout. Start,
end and padding tokens are left out of the mean. Long sequences are read in overlapping windows (``windows.py``), each
between a start and an end token, as fair-esm would read that stretch of the protein.

Zeming Lin et al., "Evolutionary-scale prediction of atomic-level protein structure with a language model",
Science 379:1123 (2023).

The same weights come from a Hub folder (``esm2_transformers.py``) or an original checkpoint (``esm2_fair_esm.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcc_fm.encoders.parallel import each_on_one_core
from vcc_fm.encoders.proteins.encoder import JSON
from vcc_fm.encoders.proteins.esm2_tokens import EXTRA, READ_AS
from vcc_fm.encoders.proteins.token_batches import Cutting, Shard, plan_shards
from vcc_fm.ground.errors import UserError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Backbone:
    """A loaded model, cut off after the layer that is asked for.

    Attributes:
        represent: tokens [b, t] int64 in the computer's memory -> the layer's output [b, t, width] on ``device``.
        width: length of a representation.
        layer: layer whose output it is; 0 is the token embedding.
        device: where the model is; where its first layer is, if it is spread over several.
        dtype: of weights and activations.
        checkpoint: loader, name or Hub id, and revision or SHA-256. A function, since a digest takes a while.
    """

    represent: Callable[[Tensor], Tensor]
    width: int
    layer: int
    device: torch.device
    dtype: torch.dtype
    checkpoint: Callable[[], dict[str, JSON]]


class Esm2Encoder:
    """ESM2 as a protein encoder.

    Args:
        backbone: The loaded model.
        cutting: How sequences are cut into windows, batches and shards.
    """

    def __init__(self, backbone: Backbone, cutting: Cutting | None = None) -> None:
        self.backbone = backbone
        self.cutting = Cutting() if cutting is None else cutting

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.backbone.width

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.backbone.device

    def repairs(self, sequences: list[str]) -> dict[str, int]:
        """What is read otherwise than it is written, and in how many sequences."""
        counted = {
            f"{letter} read as {other}": sum(letter in s.upper() for s in sequences)
            for letter, other in READ_AS.items()
        }
        return {repair: number for repair, number in counted.items() if number}

    def describe(self) -> dict[str, JSON]:
        """Encoder name, checkpoint, parameters, licence and citation: what ``store.json`` records."""
        return {
            "encoder": "esm2",
            "checkpoint": self.backbone.checkpoint(),
            "parameters": {
                "layer": self.backbone.layer,
                "pooling": "mean over residues, without start and end tokens",
                "windows": "fewest of full length, evenly spaced; a residue is the mean over those that cover it",
                **asdict(self.cutting),
                "dtype": str(self.backbone.dtype).removeprefix("torch."),
                "device": self.backbone.device.type,
                "read_as": ", ".join(f"{letter} as {other}" for letter, other in READ_AS.items()),
            },
            "licence": "ESM2 weights: MIT; the licence of the sequences applies as well",
            "citation": "Lin et al., Science 379:1123 (2023), doi:10.1126/science.ade2574",
        }

    def plan(self, sequences: list[str]) -> list[Shard]:
        """The shards of ``sequences``: see :func:`vcc_fm.encoders.proteins.token_batches.plan_shards`."""
        return plan_shards(sequences, self.cutting)

    def encode(self, sequences: list[str]) -> NDArray[np.float32]:
        """Encode protein sequences.

        Args:
            sequences: Amino-acid sequences, one-letter code; lower case is read as upper case, J as X.

        Returns:
            [n, width] float32, one row per sequence; the order of the sequences does not change a bit of a row.

        Raises:
            UserError: A sequence is empty, has a character that ESM2 does not know, or no standard amino acid.
        """
        vectors = {
            sequence: vector
            for shard in self.plan(sequences)
            for sequence, vector in zip(shard.sequences, self.encode_shard(shard), strict=True)
        }
        return np.array([vectors[sequence] for sequence in sequences], np.float32).reshape(-1, self.width)

    def encode_shard(
        self, shard: Shard, progress: Callable[[int], None] = lambda residues: None
    ) -> NDArray[np.float32]:
        """The vectors of ``shard.sequences``, [n, width] float32, the same to the last bit at every call.

        Args:
            shard: One of :meth:`plan`.
            progress: Told after every batch how many residues of the shard are done.
        """
        parts: list[Tensor] = []
        done = 0
        for total, tokens in each_on_one_core(partial(self._batch, shard), range(len(shard.bounds) - 1), self.device):
            parts.append(total)
            done += tokens
            # Overlaps of windows are read twice: the share of the tokens is that of the work.
            progress(round(shard.residues * done / shard.tokens))
        # Fetched once: a GPU works on while the next batches are put together.
        sums = torch.cat(parts).cpu().numpy().astype(np.float64)
        vectors = np.zeros((len(shard.sequences), self.width))
        np.add.at(vectors, shard.windows.owner, sums)
        return vectors.astype(np.float32)

    def _batch(self, shard: Shard, number: int) -> tuple[Tensor, int]:
        """The sums of a batch of a shard, and its tokens without padding."""
        tokens, weights = shard.batch(number)
        return self._weighted_sums(tokens, weights), int((weights > 0).sum()) + EXTRA * len(tokens)

    @torch.inference_mode()
    def _weighted_sums(self, tokens: NDArray[np.int64], weights: NDArray[np.float32]) -> Tensor:
        """[b, width] float32 on the device: the residues' representations, summed by weight."""
        hidden = self.backbone.represent(torch.from_numpy(tokens)).float()
        # Not a matrix product: on a GPU that could be rounded to TF32.
        return (hidden * torch.from_numpy(weights).to(hidden.device)[..., None]).sum(1)


def choose_layer(layer: int | None, layers: int, name: str) -> int:
    """The layer asked for, the last one where None is.

    Raises:
        UserError: The model has no such layer.
    """
    if layer is None:
        return layers
    if not 0 <= layer <= layers:
        raise UserError(
            f"embed.proteins.layer={layer}: {name} has {layers} layers; choose 0 (token embedding) to {layers}"
        )
    return layer


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``float32`` or ``bfloat16``; ``auto`` is bfloat16 on a GPU and float32 elsewhere.

    Raises:
        UserError: It is none of these.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise UserError(f"embed.proteins.precision: choose auto, float32 or bfloat16, found {dtype!r}")
    return _DTYPES[dtype]
