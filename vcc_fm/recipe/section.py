"""What the sections of a recipe have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

PositiveInt = Annotated[int, Field(gt=0)]


PositiveFloat = Annotated[float, Field(gt=0)]


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


Sha256 = Annotated[str | None, Field(pattern="^[0-9a-fA-F]{64}$")]


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
