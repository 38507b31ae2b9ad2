"""The sizes of SE checkpoints: the published ones, others, and what does not fit together."""

import dataclasses
import math

import pytest
from state_se_checkpoints import TINY

from vcc_fm.encoders.cells.state_se_geometry import TIED, SeGeometry
from vcc_fm.ground.errors import UserError

SE_600M = SeGeometry(2048, 2048, 16, 16, 2048, 5120, 19790, 14420)
SE_100M = SeGeometry(1024, 1024, 8, 16, 1024, 5120, 19790, 14418)


@pytest.mark.parametrize(
    ("geometry", "tensors", "values"), [(SE_600M, 238, 715_062_442), (SE_100M, 142, 217_284_776)], ids=["600M", "100M"]
)
def test_geometry_of_the_published_checkpoints(geometry: SeGeometry, tensors: int, values: int) -> None:
    shapes = geometry.shapes()
    assert len(shapes) == tensors
    assert sum(math.prod(shape) for shape in shapes.values()) == values
    assert SeGeometry.from_shapes(shapes, 16, "x") == geometry


def test_geometry_without_tied_copies() -> None:
    shapes = {key: shape for key, shape in TINY.shapes().items() if key not in TIED}
    assert SeGeometry.from_shapes(shapes, 4, "x") == TINY


def test_geometry_of_other_sizes() -> None:
    other = dataclasses.replace(TINY, dataset_width=6, bins=5, bin_hidden=9, datasets=1, output=8)
    assert SeGeometry.from_shapes(other.shapes(), 4, "x") == other


@pytest.mark.parametrize(
    ("changes", "heads", "message"),
    [
        ({"encoder.0.weight": None}, 4, "encoder.0.weight is missing"),
        ({"encoder.0.weight": (64,)}, 4, r"encoder.0.weight has shape \[64\], wanted two axes"),
        ({"decoder.0.dense.bias": None}, 4, "1 tensors are missing, the first is decoder.0.dense.bias"),
        ({"transformer_encoder.layers.1.norm1.bias": None}, 4, "the first is transformer_encoder.layers.1.norm1.bias"),
        ({"transformer_encoder.layers.4.norm1.bias": (64,)}, 4, "23 tensors are missing.*layers.3.qkv_proj.weight"),
        ({"lm_head.weight": (2, 2)}, 4, "1 tensors have no place in SE, the first is lm_head.weight"),
        ({"cls_token": (48,)}, 4, r"cls_token has shape \[48\], the other tensors ask for \[1, 48\]"),
        ({"pe_embedding.weight": (150, 47)}, 4, r"pe_embedding.weight has shape \[150, 47\].* ask for \[150, 48\]"),
        ({"binary_decoder.2.weight": (1, 106)}, 4, r"binary_decoder.2.weight has shape .* ask for \[1, 107\]"),
        ({}, 5, "5 attention heads do not divide its width of 64; set embed.cells.heads"),
        ({}, 0, "0 attention heads"),
    ],
)
def test_inconsistent_geometry_is_refused(
    changes: dict[str, tuple[int, ...] | None], heads: int, message: str
) -> None:
    changed: dict[str, tuple[int, ...] | None] = {**TINY.shapes(), **changes}
    shapes = {key: shape for key, shape in changed.items() if shape is not None}
    with pytest.raises(UserError, match=message):
        SeGeometry.from_shapes(shapes, heads, "model.safetensors")
