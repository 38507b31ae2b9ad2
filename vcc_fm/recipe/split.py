"""The section on what is held out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vcc_fm.recipe.section import Fraction, PositiveInt, Section


class SplitConfig(Section):
    """What is held out. A context's control cells are never held out: they are what a prediction starts from."""

    hold_out: Literal["perturbations", "contexts", "few-shot", "table", "none"] = Field(
        description="perturbations: everywhere; contexts: all their perturbations; few-shot: some perturbations in "
        "`contexts`; table: a cell-load TOML; none: everything trains, and nothing is scored"
    )
    contexts: list[str] = Field(
        [], description="held-out contexts, in turn if there are folds (contexts), or target contexts (few-shot)"
    )
    test: Fraction | PositiveInt | list[str] = Field(
        0.3, description="held-out perturbations: a fraction, a number, or labels (perturbations and few-shot)"
    )
    test_among: Literal["all", "combinations"] = Field(
        "all",
        description="what a fraction or number `test` is chosen from: all perturbations, or combinations whose single "
        "perturbations were measured too (perturbations and few-shot)",
    )
    validation: Fraction | list[str] = Field(
        0.15,
        description="of what remains for training: a fraction of the perturbations (contexts and none: of the groups "
        "of a context and a perturbation), or labels, kept for choosing checkpoints; table: the table says",
    )
    unseen: Fraction = Field(
        0.0, description="few-shot: fraction of the test perturbations that is held out of every other context too"
    )
    folds: PositiveInt = Field(
        1,
        description="number of folds, scored together: parts of all perturbations (perturbations), or of `contexts` "
        "(contexts), each held out once",
    )
    table: str | None = Field(
        None, description="table: path of the cell-load TOML ([training], [zeroshot], [fewshot])"
    )

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.hold_out in ("contexts", "few-shot") and not self.contexts:
            raise ValueError(f"split.hold_out={self.hold_out} needs split.contexts")
        if self.hold_out == "table" and self.table is None:
            raise ValueError("split.hold_out=table needs split.table, the path of a cell-load TOML")
        if self.folds > 1 and self.hold_out not in ("perturbations", "contexts"):
            raise ValueError(
                f"split.folds={self.folds} needs split.hold_out=perturbations or contexts, found {self.hold_out}"
            )
        if self.hold_out == "contexts" and self.folds > len(self.contexts):
            raise ValueError(f"split.folds={self.folds} is more than the {len(self.contexts)} of split.contexts")
        if self.contexts and self.hold_out in ("perturbations", "table", "none"):
            raise ValueError(f"split.contexts={self.contexts} has no meaning with split.hold_out={self.hold_out}")
        if self.table is not None and self.hold_out != "table":
            raise ValueError(f"split.table={self.table} needs split.hold_out=table, found {self.hold_out}")
        if self.test_among != "all":
            if self.hold_out not in ("perturbations", "few-shot") or self.folds > 1 or isinstance(self.test, list):
                raise ValueError(
                    f"split.test_among={self.test_among} needs split.hold_out=perturbations or few-shot, one fold and "
                    "a fraction or number split.test"
                )
        if self.unseen > 0 and self.hold_out != "few-shot":
            raise ValueError(f"split.unseen={self.unseen} needs split.hold_out=few-shot, found {self.hold_out}")
        return self
