"""Nuclei of a store of patches: their roles, what was measured, and batches.

Shape letters: B nuclei of a batch, S a nucleus and its nearest ones, itself first, F numbers of a patch, G genes, T
what is learned of a nucleus: G values and G ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from vcc_fm.cellsets.batch import Fed
from vcc_fm.cellsets.sampler import Sets
from vcc_fm.encoders.images.slide import Slide, log_share
from vcc_fm.ground.errors import UserError, shown
from vcc_fm.recipe.slides import RegionSplit
from vcc_fm.store.embeddings import EmbeddingStore
from vcc_fm.training.loop import Assembles


@dataclass(frozen=True)
class PatchBatch(Fed):
    """B nuclei, ready for the decoder; float32.

    Attributes:
        near_BSF: patches of the nuclei.
        wide_BF: neighbourhood of the first of each set.
        offset_BS2: where a nucleus is from the first, in sides of the wide patch.
        mask_BS: bool, False where a slide has fewer nuclei than a set.
        target_BT: of the first of each set; None to predict.
    """

    near_BSF: torch.Tensor
    wide_BF: torch.Tensor
    offset_BS2: torch.Tensor
    mask_BS: torch.Tensor
    target_BT: torch.Tensor | None

    @property
    def tokens(self) -> int:  # type: ignore[override]
        """See :class:`Fed`."""
        return len(self) * (2 + self.mask_BS.shape[1])


class PatchData(Assembles):
    """The nuclei of a store, in its order.

    Attributes:
        nuclei: sample, cell_id, y, x, group (of the files), role (train, validation, test, none), region.
        genes: the panel.
        held_out: sample -> cell_id of all its nuclei that are to be predicted, with a patch or without.

    Args:
        folder: of the store.
        slides: whose patches it holds.
        split: what is held out; None to predict alone.
        seed: of the choice of validation regions.
        size: S.

    Raises:
        UserError: the slides measured other genes, or nothing is left to train or to validate on.
    """

    def __init__(self, folder: Path, slides: Sequence[Slide], split: RegionSplit | None, seed: int, size: int):
        self.store, self.size = EmbeddingStore(folder), size
        key = pd.Series(self.store.keys).astype(str).str.rsplit("/", n=1)
        index = pd.MultiIndex.from_arrays([key.str[0], key.str[1].astype(np.int64)], names=["sample", "cell_id"])
        group = pd.concat({slide.sample: slide.nuclei["group"] for slide in slides}, names=index.names)
        self._place = self.store.take(np.arange(len(key)), "place").astype(float)
        self.nuclei = group.reindex(index).reset_index().assign(y=self._place[:, 0], x=self._place[:, 1])
        ids, genes, counts = zip(*(slide.expression() for slide in slides), strict=True)
        self.genes: list[str] = genes[0]
        if others := [slide.sample for slide, panel in zip(slides, genes, strict=True) if panel != self.genes]:
            raise UserError(f"{others[0]}: other genes than {slides[0].sample}; give slides of one panel")
        samples = np.repeat([slide.sample for slide in slides], list(map(len, ids)))
        self._counts = sparse.vstack(counts, "csr")
        # A nucleus without transcripts has no expression to learn.
        some = np.flatnonzero(self._counts.sum(axis=1).A1)
        self._counts = self._counts[some]
        self._row = pd.MultiIndex.from_arrays([samples[some], np.concatenate(ids)[some]]).get_indexer(index)
        named = split.test if split else []
        tested = group[group.isin([] if named else ["validation", "test"]) | group.index.isin(named, level="sample")]
        self.held_out = {str(one): part.index.droplevel(0) for one, part in tested.groupby(level=0, sort=False)}
        self.nuclei["role"], self.nuclei["region"] = roles(self.nuclei, split, seed)
        self.nuclei.loc[self.nuclei["role"].isin(["train", "validation"]) & (self._row < 0), "role"] = "none"
        for role in ("train", "validation") if split else ():
            if not len(self.rows(role)):
                raise UserError(f"split: no nucleus is left for {role}; hold out less, or set region smaller")
        # The nearest nuclei of each, of any group: images are known wherever expression is held out.
        self._near = np.repeat(np.arange(len(key))[:, None], size, axis=1)
        self._there = np.zeros(self._near.shape, bool)
        for rows in self.nuclei.groupby("sample").indices.values():
            most = min(size, len(rows))
            _, found = cKDTree(self._place[rows]).query(self._place[rows], np.arange(most) + 1)
            self._near[rows[:, None], np.arange(1, most)] = rows[found[:, 1:]]
            self._there[rows, :most] = True

    def rows(self, role: str) -> np.ndarray:
        """Rows of the nuclei of a role, int64."""
        return np.flatnonzero(self.nuclei["role"] == role)

    def measured(self, rows: np.ndarray) -> np.ndarray:
        """Those of the nuclei that have an expression."""
        return rows[self._row[rows] >= 0]

    def values(self, rows: np.ndarray) -> np.ndarray:
        """log1p(100 x / total) of measured nuclei, [n, G] float32."""
        assert (self._row[rows] >= 0).all()
        return log_share(self._counts[self._row[rows]].toarray())

    def ranks(self, rows: np.ndarray) -> np.ndarray:
        """Average rank of each gene in measured nuclei, over G: above 0 to 1, [n, G] float32."""
        return (rankdata(self.values(rows), axis=1) / len(self.genes)).astype(np.float32)

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of nuclei and of their neighbourhoods, colours included, [n, 2 F] float32."""
        return np.concatenate([self.store.take(rows), self.store.take(rows, "wide")], axis=1)

    def assemble(self, sets: list[int], buffer: np.ndarray | None = None) -> PatchBatch:
        """Read and stack nuclei, given by their rows, with what is learned of them unless one is held out."""
        rows = np.array(sets)
        near = self._near[rows]
        # A unit that does not depend on which slides there are: one slide is predicted as among others.
        unit = self.store.meta["parameters"]["wide"]
        offset = ((self._place[near] - self._place[rows][:, None]) / unit).astype(np.float32)
        known = np.isin(self.nuclei["role"].to_numpy()[rows], ["train", "validation"]).all()
        target = np.concatenate([self.values(rows), self.ranks(rows)], axis=1) if known else None
        vectors = self.store.take(near.ravel()).reshape(*near.shape, -1), self.store.take(rows, "wide")
        near_, wide, place, there = map(torch.from_numpy, (*vectors, offset, self._there[rows]))
        return PatchBatch(near_, wide, place, there, None if target is None else torch.from_numpy(target))


class NucleusStream(Sets):
    """An endless, addressable stream of rows: each once an epoch, in an order that seed and epoch alone decide."""

    def __init__(self, rows: np.ndarray, seed: int):
        self._rows = rows
        self._order = lru_cache(2)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, len(self._rows))
        return int(self._order(epoch)[place])


def roles(nuclei: pd.DataFrame, split: RegionSplit | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What each nucleus is for (train, validation, test, none), and its region: object [N] each.

    Held out are whole samples, or squares of ``split.region`` pixels of the training tissue. Training nuclei within
    ``split.margin`` of a validation square are left out, so that no training patch shows what validation predicts.

    Args:
        nuclei: sample, group, y, x.
        split: of the recipe; None: the groups validation and test are predicted, and no more.
        seed: of the choice of squares.

    Raises:
        UserError: a sample is unknown or named twice, or there are fewer than two squares.
    """
    sample, group = nuclei["sample"].to_numpy(), nuclei["group"].to_numpy()
    if split is None:
        return np.where(np.isin(group, ["validation", "test"]), "test", "none").astype(object), sample
    named = split.test + (split.validation if isinstance(split.validation, list) else [])
    if wrong := [one for one in named if one not in set(sample) or named.count(one) > 1]:
        raise UserError(
            f"split: {shown(wrong[0])} is no sample or named twice; there are {', '.join(np.unique(sample))}"
        )
    role = np.where(np.isin(group, ["train", "none"]), group, "none" if split.test else "test").astype(object)
    role[np.isin(sample, split.test)] = "test"

    def square(down: int, right: int) -> np.ndarray:
        at = ((nuclei[["y", "x"]] + [down, right]) // split.region).astype(int).astype(str)
        return (nuclei["sample"] + "/" + at["y"] + "-" + at["x"]).to_numpy(str)

    own = square(0, 0)
    if isinstance(split.validation, list):
        role[(role == "train") & np.isin(sample, split.validation)] = "validation"
        return role, own
    there = np.unique(own[role == "train"])
    if len(there) < 2:
        raise UserError(f"split.region={split.region}: all training nuclei are in one region; set it smaller")
    number = min(max(1, round(split.validation * len(there))), len(there) - 1)
    chosen = np.random.default_rng(seed).choice(there, number, replace=False)
    steps = (*range(-split.margin, split.margin, split.region), split.margin)
    close = np.any([np.isin(square(down, right), chosen) for down in steps for right in steps], axis=0)
    inside = np.isin(own, chosen)
    role[(role == "train") & close] = np.where(inside, "validation", "none")[(role == "train") & close]
    return role, own
