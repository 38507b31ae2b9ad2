"""An adapter without its base: what of a decoder is not the base's, and how the two become one model again."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file, save_file

from vcc_fm.decoder.config import UNFIT, PerturbationDecoderConfig, unfit
from vcc_fm.decoder.load import base_config, load_backbone, load_decoder, not_finite
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError, reading

AROUND, ADAPTER = "around.safetensors", "adapter"
_BACKBONE = "backbone."


def save_around(decoder: PerturbationDecoder, path: Path) -> None:
    """Write all tensors of a decoder but its backbone's, buffers too."""
    state = decoder.state_dict()
    save_file({name: value.contiguous() for name, value in state.items() if not name.startswith(_BACKBONE)}, path)


def load_adapter(folder: Path, base: str, revision: str | None) -> PerturbationDecoder:
    """The merged decoder of an adapter.

    Args:
        folder: with the decoder's ``config.json``, ``adapter/`` and ``around.safetensors``.
        base: folder or Hub id of what the adapter is put on: a decoder, or a backbone.
        revision: of the Hub id.

    Raises:
        UserError: the base cannot be had, or is not the one that the adapter was trained on.
    """
    config = base_config(str(folder), None)
    if not isinstance(config, PerturbationDecoderConfig):
        raise UserError(f"{folder}: holds a {config.model_type}, where a decoder of this program is expected")
    if isinstance(base_config(base, revision), PerturbationDecoderConfig):
        backbone = load_decoder(base, revision).backbone
    else:
        backbone = load_backbone(base, revision)
    with reading(folder / AROUND, "safetensors"):
        around = load_file(folder / AROUND)
    state = {f"{_BACKBONE}{name}": value for name, value in backbone.state_dict().items()} | around
    try:
        decoder = PerturbationDecoder(config)
        decoder.load_state_dict(state)
    except UNFIT as error:
        raise UserError(f"{folder}: does not fit its base {base}: {unfit(config.backbone, error)}") from None
    with reading(folder / ADAPTER, "an adapter"):
        merged = PeftModel.from_pretrained(decoder, str(folder / ADAPTER), use_safetensors=True).merge_and_unload()
    assert isinstance(merged, PerturbationDecoder)
    if wrong := not_finite(merged):
        raise UserError(f"{folder}: {len(wrong)} tensors are not finite, such as {wrong[0]}; take another checkpoint")
    return merged
