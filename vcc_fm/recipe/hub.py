"""The section on what is shared, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcc_fm.recipe.section import Section

NOT_SHARED = "hub=null"
"""Override of runs beside each other, such as seeds or worlds: of models in one place the last would be left."""


class HubConfig(Section):
    """What goes to the Hugging Face Hub as the last stage."""

    repo: str = Field(description="repository, ORG/NAME; made if it is not there", pattern=r"^[\w.-]+/[\w.-]+$")
    what: Literal["merged", "adapter", "stores", "predictions", "all"] = Field(
        "merged",
        description="the model, with merged weights or as an adapter of a base on the Hub; stores and predictions go "
        "to a dataset of the same name; all: merged, stores and predictions",
    )
    private: bool = Field(False, description="whether a new repository is private")
    revision: str | None = Field(None, description="branch, made if it is not there; null: main")
    fold: int = Field(0, ge=0, description="which fold's model, where there are several")
    controls: int = Field(100, ge=0, description="control cells of each context that go along, to try the model on")
    licence: str | None = Field(
        None, description="licence of what is shared, as the Hub names it (apache-2.0, cc-by-4.0, ...)"
    )
    accept_licence: list[str] = Field(
        [], description="names of ancestors whose terms you have read, where they limit use or passing on"
    )
