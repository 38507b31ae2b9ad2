"""Sections of a recipe that judges embeddings of cells as cz-benchmarks does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from vcc_fm.recipe.embed import CELLS, CellEncoderSettings
from vcc_fm.recipe.section import Section

Task = Literal[
    "clustering", "embedding", "integration", "labels", "sequential", "cross-species", "cross-species-labels"
]


class NamedEncoder(Section):
    """What stands under a name."""

    cells: Annotated[SerializeAsAny[CellEncoderSettings], BeforeValidator(CELLS)] = Field(
        description="encoder of cells, named by `encoder`; each has keys of its own"
    )


class CzConfig(Section):
    """What the embeddings are asked."""

    tasks: list[Task] = Field(
        min_length=1, description="tasks of cz-benchmarks; batches are the sources' batches, species their contexts"
    )
    labels: str = Field(description="obs column of every source with the label of a cell, such as its type")
    time: str | None = Field(None, description="sequential: obs column with the number that orders cells")
