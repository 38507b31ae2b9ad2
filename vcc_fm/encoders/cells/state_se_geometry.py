"""The sizes of an SE checkpoint, told by the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vcc_fm.ground.errors import UserError

# Checkpoints repeat the token encoder under a second name; the copy and what it must equal.
TIED = {f"gene_embedding_layer.{part}": f"encoder.{part}" for part in ("0.weight", "0.bias", "1.weight", "1.bias")}

_LAYER_KEY = re.compile(r"transformer_encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class SeGeometry:
    """Sizes of a checkpoint.

    Attributes:
        width: of a token in the network (``emsize``, d_model).
        hidden: of the feed-forward layers (``d_hid``).
        layers: number of transformer layers (``nlayers``).
        heads: of attention (``nhead``); the only size that no tensor's shape tells.
        output: width of the cell embedding (``output_dim``).
        token_dim: width of the ESM table.
        genes: rows of the ESM table.
        datasets: classes of the data set classifier, a head of training.
        dataset_width: of the data set vector.
        bins: of the soft binning of values.
        bin_hidden: hidden units of the soft binning.
    """

    width: int
    hidden: int
    layers: int
    heads: int
    output: int
    token_dim: int
    genes: int
    datasets: int
    dataset_width: int = 10
    bins: int = 10
    bin_hidden: int = 512

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], heads: int, name: str) -> SeGeometry:
        """The geometry of a checkpoint, after a check that it has every tensor of SE, no other, and all fit together.

        Args:
            shapes: Shape of each tensor of the checkpoint; the tied copies (:data:`TIED`) may be left out.
            heads: Attention heads.
            name: What messages call the checkpoint.

        Raises:
            UserError: A tensor is missing, surplus or of another shape than the others ask for, or the heads do not
                divide the width.
        """

        def size(key: str, axis: int) -> int:
            if key not in shapes:
                raise UserError(f"{name}: {key} is missing; give a checkpoint of SE (model.safetensors of SE-600M)")
            if len(shapes[key]) != 2:
                raise UserError(f"{name}: {key} has shape {list(shapes[key])}, wanted two axes")
            return shapes[key][axis]

        numbers = [int(found[1]) for key in shapes if (found := _LAYER_KEY.match(key))]
        geometry = cls(
            width=size("encoder.0.weight", 0),
            hidden=size("transformer_encoder.layers.0.linear1.weight", 0),
            layers=max(numbers, default=0) + 1,
            heads=heads,
            output=size("decoder.1.weight", 0),
            token_dim=size("encoder.0.weight", 1),
            genes=size("pe_embedding.weight", 0),
            datasets=size("dataset_encoder.4.weight", 0),
            dataset_width=size("dataset_embedder.weight", 0),
            bins=size("bin_encoder.weight", 0),
            bin_hidden=size("count_encoder.0.weight", 0),
        )
        expected = geometry.shapes()
        if missing := [key for key in expected if key not in shapes and key not in TIED]:
            raise UserError(f"{name}: {len(missing)} tensors are missing, the first is {missing[0]}; get it again")
        if surplus := sorted(shapes.keys() - expected.keys()):
            raise UserError(f"{name}: {len(surplus)} tensors have no place in SE, the first is {surplus[0]}")
        for key, shape in shapes.items():
            if tuple(shape) != expected[key]:
                raise UserError(
                    f"{name}: {key} has shape {list(shape)}, the other tensors ask for {list(expected[key])}"
                )
        if heads < 1 or geometry.width % heads:
            raise UserError(
                f"{name}: {heads} attention heads do not divide its width of {geometry.width}; "
                "set embed.cells.heads to the nhead it was trained with"
            )
        return geometry

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of a checkpoint of this geometry, the tied copies included."""
        pair = self.width + self.output + 1 + self.dataset_width  # a query of the gene decoder; 1 is the read depth
        shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, self.token_dim), "dataset_token": (1, self.token_dim)}

        def linear(key: str, outputs: int, inputs: int) -> None:
            shapes[f"{key}.weight"] = (outputs, inputs)
            shapes[f"{key}.bias"] = (outputs,)

        def norm(key: str, width: int) -> None:
            shapes[f"{key}.weight"] = (width,)
            shapes[f"{key}.bias"] = (width,)

        def skip_block(key: str, width: int) -> None:
            linear(f"{key}.intermediate_dense", 2 * width, width)
            linear(f"{key}.dense", width, 2 * width)
            norm(f"{key}.layer_norm", width)

        for key in ("encoder", "gene_embedding_layer"):
            linear(f"{key}.0", self.width, self.token_dim)
            norm(f"{key}.1", self.width)
        for number in range(self.layers):
            layer = f"transformer_encoder.layers.{number}"
            linear(f"{layer}.qkv_proj", 3 * self.width, self.width)
            linear(f"{layer}.out_proj", self.width, self.width)
            norm(f"{layer}.norm1", self.width)
            norm(f"{layer}.norm2", self.width)
            linear(f"{layer}.linear1", self.hidden, self.width)
            linear(f"{layer}.linear2", self.width, self.hidden)
        skip_block("decoder.0", self.width)
        linear("decoder.1", self.output, self.width)
        skip_block("binary_decoder.0", pair)
        skip_block("binary_decoder.1", pair)
        linear("binary_decoder.2", 1, pair)
        shapes["bin_encoder.weight"] = (self.bins, self.width)
        linear("count_encoder.0", self.bin_hidden, 1)
        linear("count_encoder.2", self.bins, self.bin_hidden)
        linear("dataset_embedder", self.dataset_width, self.output)
        linear("dataset_encoder.0", self.width, self.output)
        norm("dataset_encoder.2", self.width)
        linear("dataset_encoder.4", self.datasets, self.width)
        shapes["pe_embedding.weight"] = (self.genes, self.token_dim)
        return shapes
