"""From slides to the embedding store of patches: two vectors a nucleus, of itself and of its neighbourhood.

A slide is never in memory whole: each chunk is decoded once, and the patches of all its nuclei are cut together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import zarr
from accelerate import PartialState
from rich.console import Console

from vcc_fm.encoders.images.encoder import ImageEncoder
from vcc_fm.encoders.images.slide import Slide
from vcc_fm.encoders.shards import Shards
from vcc_fm.ground.files import whole_folder
from vcc_fm.recipe.slides import ImageEncoderSettings
from vcc_fm.store.embeddings import fixed_lists, write_embeddings

AT_A_TIME = 2048
"""Nuclei whose patches are in memory together."""
WHITE = 255
"""Beyond the slide: its background."""
LEAST_ROWS = 512
"""Rows that are decoded at a time, at the least."""


class Strips:
    """An image [3, height, width] uint8 in strips of whole rows of chunks, each with a margin around it.

    Strips that follow each other share their margins, so that no chunk is decoded twice. In memory are the strips that
    a margin touches: 250 MB with chunks of 1,024 rows and a width of 20,000 RGB pixels.

    Attributes:
        step: rows of a strip, without its margin.
    """

    def __init__(self, image: zarr.Array, margin: int):
        self._image, self.margin = image, margin
        rows = (image.shards or image.chunks)[1]
        self.step = step = rows * -(-LEAST_ROWS // rows)
        touched = 1 + 2 * -(-margin // step)
        self._rows = lru_cache(touched)(lambda number: np.asarray(image[:, number * step : (number + 1) * step]))

    def __getitem__(self, number: int) -> np.ndarray:
        """Strip ``number``, [3, rows + 2 margin, width + 2 margin], white beyond the image."""
        (channels, height, width), margin, step = self._image.shape, self.margin, self.step
        top, end = number * step - margin, min((number + 1) * step, height) + margin
        strip = np.full((channels, end - top, width + 2 * margin), WHITE, np.uint8)
        for one in range(max(top, 0) // step, (min(end, height) - 1) // step + 1):
            start, rows = one * step, self._rows(one)
            first, last = max(start, top), min(start + rows.shape[1], end)
            strip[:, first - top : last - top, margin : margin + width] = rows[:, first - start : last - start]
        return strip


def cut(strip: np.ndarray, row: np.ndarray, column: np.ndarray, size: int) -> np.ndarray:
    """Patches [n, 3, size, size] around the pixels ``row``, ``column`` of a strip, int64 [n].

    The centre is the pixel right of and below the middle where ``size`` is even.
    """
    windows = np.lib.stride_tricks.sliding_window_view(strip, (size, size), axis=(1, 2))
    return np.ascontiguousarray(windows[:, row - size // 2, column - size // 2].swapaxes(0, 1))


@dataclass(frozen=True)
class Strip:
    """Nuclei of strip ``number`` of one slide: rows of the slide's table, and their pixels in the strip, int64."""

    slide: Slide
    image: Strips
    number: int
    nuclei: np.ndarray
    row: np.ndarray
    column: np.ndarray

    def patches(self, sizes: Sequence[int]) -> Iterator[list[np.ndarray]]:
        """Patches [n, 3, size, size] uint8 of each size, some nuclei at a time."""
        pixels = self.image[self.number]
        for start in range(0, len(self.nuclei), AT_A_TIME):
            here = slice(start, start + AT_A_TIME)
            yield [cut(pixels, self.row[here], self.column[here], size) for size in sizes]


def strips_of(slides: Sequence[Slide], most: int) -> Iterator[Strip]:
    """The nuclei of all slides, strip by strip, for patches of up to ``most`` pixels; none without a pixel."""
    for slide in slides:
        image = Strips(slide.image, -(-most // 2))
        there = np.flatnonzero(slide.nuclei["y"].notna())
        y, x = np.rint(slide.nuclei[["y", "x"]].to_numpy()[there].T).astype(np.int64)
        for number in np.unique(y // image.step):
            here = y // image.step == number
            row = y[here] - number * image.step + image.margin
            yield Strip(slide, image, int(number), there[here], row, x[here] + image.margin)


def embed_images(
    final: Path,
    slides: Sequence[Slide],
    settings: ImageEncoderSettings,
    fingerprint: str,
    state: PartialState,
    console: Console,
) -> None:
    """Write the vectors of all nuclei into the store ``final``, as :func:`embed_cells` does those of cells.

    The key is SAMPLE/CELL_ID. Beside ``embedding``, of the near patch, are ``wide`` and ``place`` (y and x, pixels).

    Raises:
        UserError: the model cannot be had.
    """
    encoder, sizes = ImageEncoder(settings, state.device), (settings.near, settings.wide)
    strips, work = list(strips_of(slides, max(sizes))), Shards(final, fingerprint, state)

    def encode(number: int, progress: Callable[[int], None]) -> np.ndarray:
        parts: list[np.ndarray] = []
        for patches in strips[number].patches(sizes):
            parts.append(np.concatenate([encoder.encode(one) for one in patches], axis=1))
            progress(sum(map(len, parts)))
        return np.concatenate(parts)

    def chunks() -> Iterator[tuple[Any, ...]]:
        for number, strip in enumerate(strips):
            nuclei = strip.slide.nuclei.iloc[strip.nuclei]
            near, wide = np.split(work.load(number), 2, axis=1)
            place = nuclei[["y", "x"]].to_numpy(np.float32)
            keys = [f"{strip.slide.sample}/{cell}" for cell in nuclei.index]
            yield keys, near, fixed_lists(wide), fixed_lists(place)

    work.compute([len(strip.nuclei) for strip in strips], encode, "nuclei", "embed images", console)
    if state.is_main_process:
        widths = {"wide": encoder.width, "place": 2}
        features = datasets.Features({name: datasets.List(datasets.Value("float32"), n) for name, n in widths.items()})
        with whole_folder(final) as partial:
            write_embeddings(partial, "barcode", chunks(), encoder.width, fingerprint, encoder.describe(), features)
        work.remove()
        if lost := sum(int(slide.nuclei["y"].isna().sum()) for slide in slides):
            console.print(f"embed images: {lost:,} nuclei have no pixel, and no vector")
    state.wait_for_everyone()
