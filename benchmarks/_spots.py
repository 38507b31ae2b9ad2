"""Lay spots with one tile each out as SpatialData slides, one store a section: the form that recipes on slides read.

    python benchmarks/_spots.py FOLDER     # from $VCC_FM_DATA/spatial

A tile's field is one spot pitch, so that tiles at their places in the array make the tissue again. A nucleus of the
mask is the pixel in the middle of a tile; ``cell_id`` is the number of the spot in its section, from 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from PIL import Image
from scipy import sparse

from vcc_fm.encoders.images.slide import log_share

SIDE, ACROSS, WHITE = 64, 20, 255
CHUNK = 1024


def write_slide(
    path: Path, image: np.ndarray, mask: np.ndarray, counts: np.ndarray, genes: list[str], groups: pd.DataFrame
) -> None:
    """A store with the elements of the challenge's small objects.

    Args:
        path: of the store.
        image: [3, y, x] uint8.
        mask: [y, x], cell_id of each pixel, 0 outside of nuclei.
        counts: [n, genes] raw, of the first n rows of ``groups`` whose column ``measured`` is true.
        genes: names.
        groups: cell_id, group, measured.
    """
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs["spatialdata_attrs"] = {"version": "0.2"}
    for name, values in (("HE_original", image), ("HE_nuc_original", mask[None].astype(np.uint32))):
        element = root.create_group(f"images/{name}")
        axes = [{"name": "c", "type": "channel"}] + [{"name": a, "type": "space"} for a in "yx"]
        scale = {"coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}], "path": "0"}
        units = [axis | ({"unit": "unit"} if axis["type"] == "space" else {}) for axis in axes]
        ends = {"input": {"name": "cyx", "axes": units}, "output": {"name": "global", "axes": units}}
        place = {"coordinateTransformations": [{"type": "identity", **ends}]}
        multiscales = [{"name": f"/images/{name}", "axes": axes, "datasets": [scale], **place}]
        channels = {"channels": [{"label": number} for number in range(len(values))]}
        element.attrs["ome"] = {"version": "0.5-dev-spatialdata", "multiscales": multiscales, "omero": channels}
        element.attrs["spatialdata_attrs"] = {"version": "0.3"}
        element.create_array("0", data=values, chunks=(values.shape[0], CHUNK, CHUNK))
    measured = groups[groups["measured"]]
    obs = pd.DataFrame({"cell_id": measured["cell_id"].to_numpy()}, index=measured["cell_id"].astype(str).to_numpy())
    table = anndata.AnnData(
        log_share(counts), obs=obs, var=pd.DataFrame(index=genes), layers={"counts": sparse.csr_matrix(counts)}
    )
    of = groups[["cell_id", "group"]].set_index(groups["cell_id"].astype(str).to_numpy())
    root.create_group("tables")
    with anndata.settings.override(auto_shard_zarr_v3=False):
        write_elem(root, "tables/anucleus", table)
        write_elem(root, "tables/cell_id-group", anndata.AnnData(obs=of))
    regions = {"spatialdata-encoding-type": "ngff:regions_table", "version": "0.2"}
    for name in ("anucleus", "cell_id-group"):
        root[f"tables/{name}"].attrs.update(regions | dict.fromkeys(("region", "region_key", "instance_key")))


def main(folder: Path) -> None:
    source = Path(os.environ["VCC_FM_DATA"]) / "spatial"
    spots = anndata.read_h5ad(source / "her2st_6sections_1000genes_counts.h5ad")
    for section in spots.obs["section"].cat.categories:
        part = spots[spots.obs["section"] == section].to_memory()
        mosaic = np.asarray(Image.open(source / f"{section}_tiles64.jpg").convert("RGB"))
        x, y = (part.obs[f"array_{axis}"].to_numpy() - part.obs[f"array_{axis}"].min() for axis in "xy")
        image = np.full((3, (y.max() + 1) * SIDE, (x.max() + 1) * SIDE), WHITE, np.uint8)
        mask = np.zeros(image.shape[1:], np.uint32)
        for number, (tile, top, left) in enumerate(zip(part.obs["tile"], y * SIDE, x * SIDE, strict=True), 1):
            row, column = tile // ACROSS * SIDE, tile % ACROSS * SIDE
            image[:, top : top + SIDE, left : left + SIDE] = mosaic[
                row : row + SIDE, column : column + SIDE
            ].transpose(2, 0, 1)
            mask[top + SIDE // 2, left + SIDE // 2] = number
        groups = pd.DataFrame({"cell_id": np.arange(len(part)) + 1, "group": "train", "measured": True})
        write_slide(folder / f"{section}.zarr", image, mask, part.X.toarray(), list(part.var_names), groups)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
