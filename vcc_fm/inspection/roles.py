"""Which columns of obs may be the context and the batch, and why: by their names, and by where the controls are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from vcc_fm.ground.words import many
from vcc_fm.sources.labels import Labels

# In order of preference; names are compared in lower case without anything but letters and digits.
_LINES = ("cellline", "celllines", "line", "celllinename", "celllineid")
_TYPES = (
    *("celltype", "celltypes", "context", "cell", "cellannotation", "annotation", "seuratannotations"),
    *("predictedcelltype", "majorityvoting", "celllabel", "cellclass", "cellidentity"),
)
_DONORS = (
    *("patient", "patientid", "donor", "donorid", "individual", "individualid", "ind", "subject", "subjectid"),
    *("participant", "participantid", "person", "mouse", "mouseid", "animal", "animalid"),
)
_BATCHES = (
    *("gemgroup", "gem", "gemgroups", "batch", "batches", "batchvar", "lane", "lanes", "channel", "library"),
    *("libraryid", "replicate", "replicates", "biorep", "rep", "sample", "sampleid", "plate", "pool", "run"),
    "origident",
)
_CONTEXTS = (*_LINES, *_TYPES, *_DONORS)
_MOST_CONTEXTS = 200
_MOST_BATCHES = 2000
FEW_PERTURBATIONS = 3
"""So few cannot be held out: contexts have to be."""
_MOST_STRANDED = 0.5  # share of the perturbed cells without controls beside them: then a column says what was done


@dataclass(frozen=True)
class Role:
    """A column of obs that may be the context or the batch."""

    column: str
    kind: str  # what its values are: cell lines, cell types, donors, batches
    levels: int
    without_control: int | None  # levels in which no cell is a control; None where the controls are not known
    stranded: float  # share of the perturbed cells that are in these

    @property
    def fits(self) -> bool:
        """Whether most perturbed cells have controls beside them."""
        return self.stranded <= _MOST_STRANDED

    @property
    def why(self) -> str:
        """What speaks for the column, or against it."""
        one = self.kind.removesuffix("s") if self.kind != "batches" else "batch"
        said = many(self.levels, one, self.kind)
        if self.without_control is None:
            return said
        if not self.without_control:
            return said + (", with control cells" if self.levels == 1 else ", each with control cells")
        return said + f", {self.without_control:,} without control cells ({self.stranded:.0%} of the perturbed cells)"


@dataclass(frozen=True)
class Roles:
    """The columns that may be the context and the batch, the best first; those that cannot be come last."""

    contexts: list[Role] = field(default_factory=list)
    batches: list[Role] = field(default_factory=list)
    further: list[str] = field(default_factory=list)  # may make one context several: cells of one group differ

    @property
    def context(self) -> str | None:
        """The column to take."""
        return next((one.column for one in self.contexts if one.fits), None)

    @property
    def batch(self) -> str | None:
        """The column to take."""
        return next((one.column for one in self.batches if one.fits), None)


def may_be_contexts(levels: dict[str, int]) -> list[str]:
    """Columns that are named as a context, of columns of labels or whole numbers (name -> number of values)."""
    return _ranked((name for name, number in levels.items() if number <= _MOST_CONTEXTS), _CONTEXTS)


def may_be_batches(levels: dict[str, int], cells: int) -> list[str]:
    """Likewise those that are named as a batch, then as a donor."""
    most = min(_MOST_BATCHES, cells // 2)
    return _ranked((name for name, number in levels.items() if 2 <= number <= most), (*_BATCHES, *_DONORS))


def is_donor(column: str) -> bool:
    """Whether a column is named as one of people or animals."""
    return bool(_ranked([column], _DONORS))


def find_roles(
    obs: pd.DataFrame, contexts: list[str], batches: list[str], further: list[str], read: tuple[Labels, str] | None
) -> Roles:
    """Choose among columns by where the control cells are.

    A context that holds no control cannot be predicted in, and a batch without one gives its cells nothing to be
    compared with. A column of which that is so for most perturbed cells, as of samples that were treated or not, is
    neither.

    Args:
        obs: table of all cells of the file.
        contexts: columns that are named as a context, the likeliest first, without a missing value.
        batches: columns that are named as a batch, likewise.
        further: columns that are named as what may make one context several.
        read: the labels, and which of them is the control; None where these are not known.
    """
    is_control, few = None, False
    if read is not None:
        labels, control = read
        obs = obs.iloc[labels.rows]
        is_control = (labels.cells["perturbation"] == control).to_numpy()
        # With hardly any perturbation, several donors are more use than the one cell type that they share.
        few = labels.cells["perturbation"].nunique() - 1 <= FEW_PERTURBATIONS
    found = [_role(obs[name], _kind(name), None, is_control) for name in contexts]
    found.sort(key=lambda one: (not one.fits, few and one.levels == 1))
    taken = next((one.column for one in found if one.fits), None)
    inside = None if taken is None else pd.factorize(obs[taken])[0]
    tried = [_role(obs[name], "batches", inside, is_control) for name in batches if name != taken]
    tried.sort(key=lambda one: not one.fits)
    if read is not None:
        group = pd.factorize(labels.cells["perturbation"])[0] * np.int64(len(obs)) + (0 if inside is None else inside)
        further = [name for name in further if name != taken and _splits(obs[name], group)]
    return Roles(found, tried, further)


def _splits(column: pd.Series, group: np.ndarray) -> bool:
    """Whether cells of one group differ in a column."""
    pairs = pd.DataFrame({"group": group, "value": pd.factorize(column.astype(object))[0]}).drop_duplicates()
    return bool(pairs["group"].duplicated().any())


def _role(column: pd.Series, kind: str, inside: np.ndarray | None, is_control: np.ndarray | None) -> Role:
    codes = pd.factorize(column.astype(object))[0]
    levels = int(codes.max()) + 1
    if is_control is None:
        return Role(str(column.name), kind, levels, None, 0.0)
    if inside is not None:
        codes = pd.factorize(codes + np.int64(levels) * inside)[0]
    controls = np.bincount(codes[is_control], minlength=codes.max() + 1)
    stranded = (controls == 0)[codes[~is_control]]
    share = float(stranded.mean()) if len(stranded) else 0.0
    return Role(str(column.name), kind, len(controls), int((controls == 0).sum()), share)


def _kind(name: str) -> str:
    kinds = (("cell lines", _LINES), ("cell types", _TYPES), ("donors", _DONORS))
    return next(kind for kind, names in kinds if _ranked([name], names))


def _ranked(names: Iterable[str], wanted: tuple[str, ...]) -> list[str]:
    """The names that are wanted, in that order, then those that begin with a wanted one."""
    bare = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in names}
    exact = sorted((name for name in bare if bare[name] in wanted), key=lambda name: wanted.index(bare[name]))
    long = tuple(one for one in wanted if len(one) >= 5)
    return exact + [name for name in bare if name not in exact and bare[name].startswith(long)]
