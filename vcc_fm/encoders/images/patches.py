"""Patches of a slide that is never in memory whole: each chunk is decoded once, and all its nuclei cut together."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import zarr

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


def centroids(mask: zarr.Array, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean row and column of the pixels of each label 0 … ``most`` of ``mask`` [(1,) height, width], in float64.

    NaN where a label has no pixel. Larger labels are passed over.
    """
    number, rows, columns = np.zeros((3, most + 1))
    step = (mask.shards or mask.chunks)[-2]
    for top in range(0, mask.shape[-2], step):
        part = np.asarray(mask[..., top : top + step, :]).reshape(-1, mask.shape[-1])
        y, x = np.nonzero((part > 0) & (part <= most))
        labels = part[y, x].astype(np.int64)
        number += np.bincount(labels, minlength=most + 1)
        rows += np.bincount(labels, top + y, most + 1)
        columns += np.bincount(labels, x, most + 1)
    with np.errstate(invalid="ignore"):
        return rows / number, columns / number
