"""Slides, patches and their vectors: against plain loops, and against spatialdata where that is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from accelerate import PartialState
from rich.console import Console

sys.path.append(str(Path(__file__).parents[1] / "slides"))
from slides_kit import GENES, slide

from vcc_fm.encoders.images.embed import Strips, cut, embed_images, strips_of
from vcc_fm.encoders.images.encoder import COLOURS, ImageEncoder, colours
from vcc_fm.encoders.images.slide import Slide, centroids, open_slides
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.slides import ImageEncoderSettings, SlidesConfig
from vcc_fm.store.embeddings import EmbeddingStore

SMALL = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8,
         "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip


class Counted:
    """A zarr array that counts how often each row of chunks is read."""

    def __init__(self, array: zarr.Array):
        self.array, self.read = array, []
        self.shape, self.chunks, self.shards = array.shape, array.chunks, array.shards

    def __getitem__(self, key):
        rows = range(*key[1].indices(self.shape[1]))
        self.read += sorted({row // self.chunks[1] for row in rows})
        return self.array[key]


@pytest.fixture
def image(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (3, 1300, 90), dtype=np.uint8)
    return values, zarr.create_array(tmp_path / "image", data=values, chunks=(3, 100, 40))


@pytest.mark.parametrize(("size", "margin"), [(32, 16), (33, 17), (8, 100), (900, 450)])
def test_patches_of_strips_are_those_of_the_whole_image(image, size, margin):
    values, stored = image
    counted = Counted(stored)
    strips = Strips(counted, margin)
    assert strips.step == 600
    around = np.pad(values, ((0, 0), (size, size), (size, size)), constant_values=255)
    rng = np.random.default_rng(1)
    for number in range(3):
        row = rng.integers(number * 600, min(1300, number * 600 + 600), 7)
        column = rng.integers(0, 90, 7)
        found = cut(strips[number], row - number * 600 + margin, column + margin, size)
        for patch, y, x in zip(found, row, column, strict=True):
            top, left = y + size - size // 2, x + size - size // 2
            np.testing.assert_array_equal(patch, around[:, top : top + size, left : left + size])
    assert counted.read == list(range(13)), "a row of chunks was decoded twice"


def test_centroids_are_means_of_pixels(tmp_path):
    mask = np.random.default_rng(0).integers(0, 9, (300, 70)).astype(np.uint32)
    mask[mask == 4] = 0
    for shape in ((300, 70), (1, 300, 70)):
        y, x = centroids(
            zarr.create_array(tmp_path / str(len(shape)), data=mask.reshape(shape), chunks=(*shape[:-2], 64, 32)), 6
        )
        for label in (1, 2, 3, 5, 6):
            np.testing.assert_allclose([y[label], x[label]], np.argwhere(mask == label).mean(axis=0))
        assert np.isnan([y[0], y[4], x[4]]).all()
        assert len(y) == 7


def test_colours_are_moments_of_density():
    patches = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), dtype=np.uint8)
    found = colours(patches)
    for one, row in zip(patches, found, strict=True):
        density = -np.log((one.reshape(3, -1) + 1.0) / 256)
        covariance = np.cov(density, bias=True)
        expected = [*density.mean(axis=1), *density.std(axis=1), *covariance[[0, 0, 1], [1, 2, 2]]]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(colours(np.zeros((1, 3, 4, 4), np.uint8))).all()


def test_a_slide_is_read_as_it_was_written(tmp_path):
    nuclei = slide(tmp_path / "S1.zarr", 0)
    read = Slide(tmp_path / "S1.zarr", SlidesConfig(path=""))
    assert read.sample == "S1"
    wanted = nuclei.set_index("cell_id").loc[read.nuclei.index]
    np.testing.assert_allclose(read.nuclei[["y", "x"]], wanted[["y", "x"]])
    group = wanted["group"].replace({"No_transcript-train": "none"})
    assert (read.nuclei["group"] == group).all()
    assert set(group) == {"train", "validation", "test", "none"}
    ids, genes, counts = read.expression()
    assert genes == GENES
    np.testing.assert_array_equal(counts.toarray(), np.stack(wanted.loc[ids, "counts"]))


@pytest.mark.parametrize(
    ("changes", "keys", "said"),
    [
        ({}, {"image": "HE_other"}, "no image 'HE_other'"),
        ({}, {"groups": "cells"}, "tables/cells/obs"),
        ({"mask": np.zeros((5, 5), np.uint32)}, {}, "no mask of its size"),
        ({"image": np.zeros((1, 360, 480), np.uint8)}, {}, "no RGB image"),
    ],
)
def test_a_slide_of_another_kind_is_refused(tmp_path, changes, keys, said):
    slide(tmp_path / "S1.zarr", 0, **changes)
    with pytest.raises(UserError, match=said):
        Slide(tmp_path / "S1.zarr", SlidesConfig(path="", **keys))


def test_values_that_do_not_follow_from_the_counts_are_refused(tmp_path):
    slide(tmp_path / "S1.zarr", 0)
    stored = zarr.open_group(tmp_path / "S1.zarr")["tables/anucleus/X"]
    stored[:] = stored[:] * 2
    with pytest.raises(UserError, match=r"not log1p\(100 x / total\)"):
        Slide(tmp_path / "S1.zarr", SlidesConfig(path="")).expression()
    with pytest.raises(UserError, match="no such store"):
        open_slides(SlidesConfig(path=f"{tmp_path}/no/*.zarr"))


def test_vectors_are_those_of_each_patch_alone(tmp_path):
    nuclei = slide(tmp_path / "S1.zarr", 0)
    settings = ImageEncoderSettings(config=SMALL, pool="mean", near=12, wide=40, batch=16)
    slides = open_slides(SlidesConfig(path=f"{tmp_path}/*.zarr"))
    embed_images(tmp_path / "store", slides, settings, "f", PartialState(cpu=True), Console(quiet=True))
    store = EmbeddingStore(tmp_path / "store")
    assert len(store.keys) == len(nuclei) == 300
    assert store.width == 8 + COLOURS
    encoder, by_id = ImageEncoder(settings, torch.device("cpu")), nuclei.set_index("cell_id")
    pixels = np.pad(Strips(slides[0].image, 0)[0], ((0, 0), (40, 40), (40, 40)), constant_values=255)
    for row in (0, 17, 299):
        cell = by_id.loc[int(store.keys[row].split("/")[1])]
        np.testing.assert_allclose(store.take(np.array([row]), "place")[0], [cell["y"], cell["x"]])
        for column, side in (("embedding", 12), ("wide", 40)):
            top, left = cell["y"] + 40 - side // 2, cell["x"] + 40 - side // 2
            patch = pixels[None, :, top : top + side, left : left + side]
            alone = encoder.encode(patch)
            np.testing.assert_allclose(store.take(np.array([row]), column), alone, rtol=1e-4, atol=1e-5)


def test_a_model_in_a_folder_has_its_own_image_processor(tmp_path):
    from transformers import AutoConfig, AutoModel, ViTImageProcessor

    options = {key: value for key, value in SMALL.items() if key != "model_type"}
    torch.manual_seed(3)
    model = AutoModel.from_config(AutoConfig.for_model("vit", **options)).eval()
    model.save_pretrained(tmp_path / "vit")
    processor = ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.7, 0.5, 0.6], image_std=[0.2, 0.2, 0.3]
    )
    processor.save_pretrained(tmp_path / "vit")
    encoder = ImageEncoder(ImageEncoderSettings(model=str(tmp_path / "vit")), torch.device("cpu"))
    patches = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    mean, spread = (np.array(values)[None, :, None, None] for values in ([0.7, 0.5, 0.6], [0.2, 0.2, 0.3]))
    pixels = torch.from_numpy(((patches / 255 - mean) / spread).astype(np.float32))
    with torch.inference_mode():
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(encoder.encode(patches)[:, :8], expected, rtol=1e-4, atol=1e-5)
    assert encoder.describe()["licence"] == "that of vit: see its card"
    with pytest.raises(UserError, match=r"embed\.images\.model"):
        ImageEncoder(ImageEncoderSettings(model=str(tmp_path)), torch.device("cpu"))


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_a_slide_that_spatialdata_writes_is_read_alike(tmp_path, version):
    spatialdata = pytest.importorskip(
        "spatialdata", reason="needs spatialdata, whose files it compares: pip install spatialdata"
    )
    import anndata
    import pandas as pd
    import spatialdata._io.format as formats
    from anndata.io import read_elem
    from spatialdata import models

    nuclei = slide(tmp_path / "own.zarr", 0)
    own = Slide(tmp_path / "own.zarr", SlidesConfig(path=""))
    root = zarr.open_group(tmp_path / "own.zarr", mode="r")
    images = {
        name: models.Image2DModel.parse(root[f"images/{name}/0"][:], dims=("c", "y", "x"))
        for name in ("HE_original", "HE_nuc_original")
    }
    table = read_elem(root["tables/anucleus"])
    groups = anndata.AnnData(obs=nuclei[["cell_id", "group"]].set_index(nuclei["cell_id"].astype(str).to_numpy()))
    data = spatialdata.SpatialData(images=images, tables={"anucleus": table, "cell_id-group": groups})
    container = {"0.1": formats.SpatialDataContainerFormatV01, "0.2": formats.SpatialDataContainerFormatV02}[version]()
    data.write(tmp_path / "theirs.zarr", sdata_formats=container)
    theirs = Slide(tmp_path / "theirs.zarr", SlidesConfig(path=""))
    pd.testing.assert_frame_equal(theirs.nuclei, own.nuclei)
    np.testing.assert_array_equal(Strips(theirs.image, 20)[0], Strips(own.image, 20)[0])
    np.testing.assert_array_equal(theirs.expression()[2].toarray(), own.expression()[2].toarray())
    again = spatialdata.read_zarr(tmp_path / "own.zarr")
    np.testing.assert_array_equal(again["HE_original"].to_numpy(), root["images/HE_original/0"][:])
    assert list(again["anucleus"].var_names) == GENES


def test_nuclei_without_a_pixel_are_left_out(tmp_path):
    nuclei = slide(tmp_path / "S1.zarr", 0)
    mask = zarr.open_group(tmp_path / "S1.zarr")["images/HE_nuc_original/0"]
    values = mask[:]
    lost = int(nuclei["cell_id"].iloc[0])
    mask[:] = np.where(values == lost, 0, values)
    slides = open_slides(SlidesConfig(path=f"{tmp_path}/*.zarr"))
    (strip,) = strips_of(slides, 16)
    assert len(strip.nuclei) == 299
    assert lost not in slides[0].nuclei.index[strip.nuclei]
