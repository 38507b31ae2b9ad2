"""A frozen vision model of `transformers` (DINOv2, Phikon, UNI, …) with its own image processor; colour statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, ViTImageProcessor

from vcc_fm.encoders.parallel import each_on_one_core
from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.hub import address_of, pull
from vcc_fm.ground.paths import expand, without_folders
from vcc_fm.recipe.slides import ImageEncoderSettings

UNTRAINED = "untrained"
COLOURS = 9
"""Numbers that tell the colours of a patch; the last ones of its vector."""
_DENSITY = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


class ImageEncoder:
    """Turns patches into vectors.

    Attributes:
        width: length of a vector, colours included.

    Raises:
        UserError: the model cannot be had, or is no model of images; weights are safetensors.
    """

    def __init__(self, settings: ImageEncoderSettings, device: torch.device):
        self._settings, self._device = settings, device
        self._model, self._processor = _untrained(settings) if settings.model == UNTRAINED else _load(settings)
        self._model.eval().requires_grad_(False).to(device)
        self.width: int = self._model.config.hidden_size + COLOURS

    def describe(self) -> dict[str, Any]:
        """What is stored beside the vectors."""
        name = without_folders(self._settings.model)
        parameters = self._settings.model_dump(mode="json", exclude={"batch", "model"})
        licence = "none: random weights" if name == UNTRAINED else f"that of {name}: see its card"
        return {"encoder": name, "parameters": parameters, "licence": licence, "citation": ""}

    def encode(self, patches: np.ndarray) -> np.ndarray:
        """Vectors [n, width] float32 of patches [n, 3, side, side] uint8: the model's, then the colours.

        The model is shown batches that follow from the number of patches alone, each on one core of a CPU.
        """
        size = self._settings.batch
        parts = [patches[start : start + size] for start in range(0, len(patches), size)]
        seen = np.concatenate(list(each_on_one_core(self._batch, parts, self._device)))
        return np.concatenate([seen, colours(patches)], axis=1)

    @torch.inference_mode()
    def _batch(self, patches: np.ndarray) -> np.ndarray:
        shown = self._processor(list(patches), input_data_format="channels_first", return_tensors="pt")
        states = self._model(pixel_values=shown["pixel_values"].to(self._device)).last_hidden_state
        return (states[:, 0] if self._settings.pool == "cls" else states.mean(dim=1)).float().cpu().numpy()


def _untrained(settings: ImageEncoderSettings) -> tuple[Any, Any]:
    with reading("embed.images.config", "a transformers config of a vision model", "correct it"):
        config = AutoConfig.for_model(**({"model_type": "vit"} | settings.config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModel.from_config(config)
        return model, ViTImageProcessor(size={"height": config.image_size, "width": config.image_size})


def _load(settings: ImageEncoderSettings) -> tuple[Any, Any]:
    where, folder = settings.model, expand(settings.model)
    if not folder.is_dir():
        if (address := address_of(where, revision=settings.revision)) is None:
            raise UserError(f"embed.images.model={where}: no such folder, and no Hub id (ORG/NAME)")
        folder, _ = pull(address, ["*.json", "*.safetensors"])
    with reading(f"embed.images.model={where}", "a vision model of transformers", "name another"):
        model = AutoModel.from_pretrained(str(folder), use_safetensors=True, trust_remote_code=False)
        return model, AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False)


def colours(patches: np.ndarray) -> np.ndarray:
    """Moments of the optical density -ln((v + 1) / 256) of red, green and blue: amounts of stain add up in it.

    Args:
        patches: [n, 3, side, side] uint8.

    Returns:
        [n, 9] float32: three means, three standard deviations, covariances red-green, red-blue, green-blue.
    """
    density = _DENSITY[patches.reshape(len(patches), 3, -1)]
    mean = density.mean(axis=2)
    density -= mean[:, :, None]
    covariance = np.einsum("nip,njp->nij", density, density) / density.shape[2]
    deviation = np.sqrt(np.einsum("nii->ni", covariance))
    return np.concatenate([mean, deviation, covariance[:, [0, 0, 1], [1, 2, 2]]], axis=1, dtype=np.float32)
