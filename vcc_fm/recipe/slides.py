"""Sections of a recipe that predicts expression from images of tissue."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vcc_fm.recipe.section import PositiveInt, Section


class SlidesConfig(Section):
    """The slides: SpatialData stores."""

    path: str = Field(description="the stores; * ? [] as in a shell")
    get: str | None = Field(None, description="where to get them, printed when they are missing")
    image: str = Field("HE_original", description="image element, [c, y, x] uint8 RGB")
    nuclei: str = Field("HE_nuc_original", description="image element whose pixels hold the cell_id, 0 outside")
    expression: str = Field("anucleus", description="table of the nuclei's expression, raw counts in its layer counts")
    groups: str = Field("cell_id-group", description="table of cell_id and group")


class ImageEncoderSettings(Section):
    """How a patch becomes a vector."""

    model: str = Field(
        "untrained", description="folder or Hub id of a vision model, or untrained: random weights of `config`"
    )
    revision: str | None = Field(None, description="revision of the Hub id")
    config: dict[str, str | int | float | bool | None] = Field(
        {
            "model_type": "vit",
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        description="transformers config of an untrained model",
    )
    pool: Literal["cls", "mean"] = Field("cls", description="vector of a patch: the first token, or the mean of all")
    near: PositiveInt = Field(32, description="side of the patch of a nucleus, pixels")
    wide: PositiveInt = Field(128, description="side of the patch of its neighbourhood, pixels")
    batch: PositiveInt = Field(64, description="patches that the model is shown at a time")


class ImageEmbed(Section):
    """The frozen encoder."""

    images: ImageEncoderSettings = Field(ImageEncoderSettings(), description="encoder of patches")


class RegionSplit(Section):
    """Which nuclei train, choose the checkpoint, and are predicted: whole regions, never single nuclei."""

    test: list[str] = Field([], description="samples to predict; empty: the groups validation and test of the files")
    validation: Annotated[list[str], Field(min_length=1)] | Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="what chooses the checkpoint: samples, or a share of the training regions"
    )
    region: PositiveInt = Field(2000, description="side of a region, pixels")
    margin: int = Field(200, ge=0, description="training nuclei so close to a validation region are left out, pixels")
