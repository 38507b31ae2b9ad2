"""The parts that a recipe chooses by name, and where each of them is: the doors for parts of your own.

A part is named here as ``module:class`` and imported when a recipe asks for it: reading a recipe needs no torch. A
part of your own is one class and one line, in a module that the recipe names under ``plugins``:

    CELL_ENCODERS.register("mine", MyEncoder)
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from vcc_fm.ground.errors import shown
from vcc_fm.recipe.section import Section


class Parts:
    """Parts of one kind by the name that a recipe uses.

    Args:
        kind: what messages call one of them.
        parts: name -> class, or where it is, as ``module:class``.
    """

    def __init__(self, kind: str, parts: dict[str, Any]):
        self.kind = kind
        self._parts = parts

    def register(self, name: str, part: Any) -> None:
        """Add a part: its class, or where it is, as ``module:class``."""
        self._parts[name] = part

    def names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        return list(self._parts)

    def check(self, name: str, key: str) -> None:
        """Refuse a name that no part has, given under a key of the recipe.

        Raises:
            ValueError: says which there are.
        """
        if name not in self._parts:
            near = difflib.get_close_matches(str(name), self.names(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names())}"
            raise ValueError(f"{key}: {shown(name)} is no {self.kind} ({hint})")

    def __getitem__(self, name: str) -> Any:
        """The part of that name, which is there."""
        part = self._parts[name]
        if isinstance(part, str):
            module, _, attribute = part.partition(":")
            part = self._parts[name] = getattr(importlib.import_module(module), attribute)
        return part


class Chosen:
    """Reads a recipe section, at ``key``, whose own keys are those of the part that it names under ``encoder``."""

    def __init__(self, parts: Parts, default: str, key: str):
        self.parts, self.default, self.key = parts, default, key

    def __call__(self, value: Any = None) -> Any:
        """The section: of a mapping as read from YAML; what is a section already stays."""
        value = {} if value is None else value
        if not isinstance(value, dict):
            return value
        name = self.name_in(value)
        self.parts.check(name, self.key)
        return self.parts[name].Settings.model_validate({**value, "encoder": name})

    def name_in(self, content: dict[str, Any]) -> str:
        """The part that a mapping names."""
        return content.get("encoder", self.default)

    def sections(self) -> dict[str, type[Section]]:
        """The section of each part."""
        return {name: self.parts[name].Settings for name in self.parts.names()}


CELL_ENCODERS = Parts(
    "cell encoder",
    {
        "expression": "vcc_fm.encoders.cells.expression:Expression",
        "state-se": "vcc_fm.encoders.cells.state_se:StateSe",
        "store": "vcc_fm.encoders.cells.stored:StoredCells",
    },
)
PROTEIN_ENCODERS = Parts(
    "protein encoder",
    {
        "composition": "vcc_fm.encoders.proteins.composition:Composition",
        "esm2": "vcc_fm.encoders.proteins.esm2:Esm2",
        "table": "vcc_fm.encoders.proteins.table:Table",
        "store": "vcc_fm.encoders.proteins.stored:StoredProteins",
    },
)
BASELINES = Parts(
    "baseline",
    {
        "control": "vcc_fm.baselines.control:Control",
        "mean-response": "vcc_fm.baselines.mean_response:MeanResponse",
        "other-contexts": "vcc_fm.baselines.other_contexts:OtherContexts",
        "similar-contexts": "vcc_fm.baselines.similar_contexts:SimilarContexts",
        "knock-down": "vcc_fm.baselines.knock_down:KnockDown",
        "protein-ridge": "vcc_fm.baselines.protein_ridge:ProteinRidge",
        "expression-ridge": "vcc_fm.baselines.expression_ridge:ExpressionRidge",
        "nearest": "vcc_fm.baselines.nearest:Nearest",
        "mixed-model": "vcc_fm.baselines.mixed_model:Mixed",
        "additive": "vcc_fm.baselines.additive:Additive",
        "oracle-mean": "vcc_fm.baselines.oracles:OracleMean",
        "oracle-direction": "vcc_fm.baselines.oracles:OracleDirection",
        "oracle-size": "vcc_fm.baselines.oracles:OracleSize",
        "embedding-transfer": "vcc_fm.baselines.embedding_transfer:EmbeddingTransfer",
    },
)
PRESETS = Parts(
    "preset",
    {
        "vcc2026": "vcc_fm.scoring.presets.vcc2026:Vcc2026",
        "vcc2025": "vcc_fm.scoring.presets.vcc2025:Vcc2025",
        "vcc2025-today": "vcc_fm.scoring.presets.vcc2025_today:Vcc2025Today",
        "full": "vcc_fm.scoring.presets.full:Full",
        "delta": "vcc_fm.scoring.presets.delta:Delta",
        "myllia": "vcc_fm.scoring.presets.myllia:Myllia",
        "cz": "vcc_fm.scoring.presets.cz:Cz",
    },
)
