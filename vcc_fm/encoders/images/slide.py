"""A slide of a SpatialData store, read with zarr alone: its image, its nuclei, and what was measured in them.

The elements are those of CrunchDAO's and the Broad's Autoimmune Disease challenge, as its documentation lists them and
its notebooks print them: images [c, y, x], the mask's among them; tables whose obs has ``cell_id``. The stores of the
size "large" hold further elements, which are not read.
"""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem
from scipy import sparse

from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.slides import SlidesConfig

SCALE = 100.0
"""Expression is log1p(100 x / total), as in the challenge's ``anucleus``."""
GROUPS = {"0": "train", "1": "validation", "2": "test", "4": "none", "no_transcript-train": "none"}
"""Ids of tissue patches -> what their nuclei are for; 4 is tissue without transcripts: seen, never learned."""


class Slide:
    """One slide.

    Attributes:
        sample: its name, that of the store.
        image: [3, height, width] uint8.
        nuclei: index cell_id; group (train, validation, test, none), y and x (pixels; NaN without a pixel).

    Raises:
        UserError: an element or a column is missing or of another kind, or a group is unknown.
    """

    def __init__(self, path: Path, settings: SlidesConfig):
        self._path, self._expression, self.sample = path, settings.expression, path.name.removesuffix(".zarr")
        with reading(path, "a SpatialData store"):
            self._root = zarr.open_group(path, mode="r", use_consolidated=False)
        self.image = image = self._raster(settings.image)
        mask = self._raster(settings.nuclei)
        for name, found, fits in (
            (settings.image, image, image.shape[:-2] == (3,) and image.dtype == np.uint8),
            (settings.nuclei, mask, mask.dtype.kind in "iu" and mask.shape[-2:] == image.shape[-2:]),
        ):
            if not fits:
                kind = f"{list(found.shape)} {found.dtype}"
                raise UserError(f"{path}: {name} is {kind}, no RGB image, or no mask of its size; name another")
        ids, group = (self._column(settings.groups, name) for name in ("cell_id", "group"))
        where = f"{path}: {settings.groups}"
        if ids.dtype.kind not in "iu" or ids.has_duplicates or (ids <= 0).any():
            raise UserError(f"{where}: cell_id must be positive integers, each once; mend the table")
        group = group.astype(str).str.lower().map(lambda one: GROUPS.get(one, one))
        if unknown := set(group) - set(GROUPS.values()):
            raise UserError(f"{where}: group {shown(min(unknown))} is unknown; there are {', '.join(GROUPS)}")
        y, x = centroids(mask, int(ids.max()))
        self.nuclei = pd.DataFrame({"group": group, "y": y[ids], "x": x[ids]}, index=ids)

    def _raster(self, name: str) -> zarr.Array:
        """The element of that name, in full resolution; images and labels of any zarr and OME-NGFF version."""
        found: Any = next((self._root[at] for k in ("images", "labels") if (at := f"{k}/{name}") in self._root), None)
        if found is None:
            raise UserError(f"{self._path}: no image {shown(name)}; name one of its images or labels")
        with reading(f"{self._path}: {name}", "an OME-NGFF image"):
            attributes = found.attrs.asdict()
            scales = attributes.get("ome", attributes)["multiscales"][0]
            if (axes := "".join(axis["name"] for axis in scales["axes"])) not in ("cyx", "yx"):
                raise UserError(f"{self._path}: {name} has the axes {axes}, expected cyx; write it anew")
            return found[scales["datasets"][0]["path"]]

    def _table(self, name: str, part: str) -> Any:
        with reading(f"{self._path}: tables/{name}/{part}", "a table", "name another table"):
            return read_elem(self._root[f"tables/{name}/{part}"])

    def _column(self, table: str, name: str) -> pd.Index:
        obs = self._table(table, "obs")
        if name not in obs:
            raise UserError(f"{self._path}: {table} has no column {name}; found {', '.join(obs.columns)}")
        return pd.Index(obs[name])

    def expression(self) -> tuple[pd.Index, list[str], sparse.csr_matrix]:
        """cell_id of the measured nuclei, genes, and raw counts [n, genes] float32.

        Raises:
            UserError: there are no counts, or the table's own values are not log1p(100 x / total) of them.
        """
        name = self._expression
        ids, genes = self._column(name, "cell_id"), list(map(str, self._table(name, "var").index))
        counts = sparse.csr_matrix(self._table(name, "layers/counts"), dtype=np.float32)
        first = sparse.csr_matrix(self._table(name, "X"))[:1000].toarray()
        if not np.allclose(first, log_share(counts[:1000].toarray()), atol=0.01):
            raise UserError(f"{self._path}: {name}/X is not log1p(100 x / total) of layers/counts; mend the table")
        return ids, genes, counts


def centroids(mask: zarr.Array, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean row and column of the pixels of each label 0 … ``most`` of ``mask`` [(1,) height, width], in float64.

    NaN where a label has no pixel. Larger labels are passed over.
    """
    number, rows, columns = np.zeros((3, most + 1))
    step = (mask.shards or mask.chunks)[-2]
    for top in range(0, mask.shape[-2], step):
        part = np.asarray(mask[..., top : top + step, :]).ravel()
        place = np.flatnonzero((part > 0) & (part <= most))
        labels, (y, x) = part[place].astype(np.int64), np.divmod(place, mask.shape[-1])
        number += np.bincount(labels, minlength=most + 1)
        rows += np.bincount(labels, top + y, most + 1)
        columns += np.bincount(labels, x, most + 1)
    with np.errstate(invalid="ignore"):
        return rows / number, columns / number


def log_share(counts: np.ndarray) -> np.ndarray:
    """log1p(100 x / total) of raw counts [n, genes], float32; zeros where a nucleus has none."""
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(SCALE * counts / np.where(total > 0, total, 1)).astype(np.float32)


def slide_files(settings: SlidesConfig) -> list[Path]:
    """The stores that a recipe names, sorted."""
    return sorted(map(Path, glob(str(expand(settings.path)))))


def open_slides(settings: SlidesConfig) -> list[Slide]:
    """All slides of a recipe.

    Raises:
        UserError: there are none, or one is refused.
    """
    if not (paths := slide_files(settings)):
        get = settings.get or "or correct the path"
        raise UserError(f"slides.path={settings.path}: no such store; get them: {get}")
    return [Slide(path, settings) for path in paths]
