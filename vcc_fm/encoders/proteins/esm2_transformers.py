"""ESM2 from a folder as the Hub holds it: `facebook/esm2_t6_8M_UR50D` … `facebook/esm2_t48_15B_UR50D`.

Attention is torch's fused kernel (SDPA); the pooler, the language-model head and the contact head are not run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import EsmConfig, EsmModel
from transformers.utils import logging as transformers_logging

from vcc_fm.encoders.proteins.encoder import JSON
from vcc_fm.encoders.proteins.esm2_encoder import Backbone, Esm2Encoder, choose_dtype, choose_layer
from vcc_fm.encoders.proteins.esm2_tokens import PADDING, SIZE
from vcc_fm.encoders.proteins.token_batches import Cutting
from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.ground.files import sha256_file
from vcc_fm.ground.hub import address_of, pull
from vcc_fm.ground.processes import check_compiler

# A bar for loading, and a table of the heads that are left out, are no news; what is wrong is raised below.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

# Made anew at loading where a checkpoint leaves them out: the contact head is never run, and the rotation frequencies
# follow from the shape.
_DISPENSABLE = ("contact_head.", "rotary_embeddings.")
# The heads of other tasks on the same backbone.
_HEADS = ("lm_head.", "pooler.", "classifier.", "contact_head.")


def load_transformers(
    path_or_hub_id: str,
    revision: str | None = None,
    layer: int | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    cutting: Cutting | None = None,
    compiled: bool = True,
) -> Esm2Encoder:
    """Load ESM2 through ``transformers``.

    Args:
        path_or_hub_id: A folder with ``config.json`` and weights (safetensors; else ``pytorch_model*.bin``, read with
            ``weights_only``), or a Hub id; a folder of that name goes first.
        revision: Branch, tag or commit on the Hub; None is the newest. The commit found is recorded.
        layer: Layer whose output is taken, 0 (token embedding) to the number of layers; None is the last.
        dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 on a GPU, else float32.
        device: As torch names it (``cpu``, ``cuda:1``), or ``auto``: layers spread over all GPUs, then memory, for a
            model that one GPU does not hold.
        cutting: How sequences are cut; None takes the defaults.
        compiled: Whether torch compiles the layers of a model on one GPU. Written out, a layer spends more time on
            reading and writing what goes through its gelu, its rotation and its norms than on products of matrices.

    Raises:
        UserError: There is no such folder or repository, it is damaged or holds another model than ESM2, its weights
            are not those that its configuration asks for, it has no such layer, or there is nothing to compile with.
    """
    folder, checkpoint = _find(path_or_hub_id, revision)
    config = _config(folder, path_or_hub_id)
    layer = choose_layer(layer, config.num_hidden_layers, path_or_hub_id)
    spread = device == "auto"
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu") if spread else torch.device(device)
    model = _weights(folder, path_or_hub_id, choose_dtype(dtype, place), "auto" if spread else None)
    if layer < config.num_hidden_layers:
        model.encoder.layer = model.encoder.layer[:layer]
        model.encoder.emb_layer_norm_after = nn.Identity()
    if not spread:
        model.to(place)
        if compiled and place.type == "cuda":
            compile_layers(model)

    def represent(tokens: Tensor) -> Tensor:
        inside = tokens != PADDING
        # Without padding no mask is needed, and the fastest attention kernels take none.
        mask = None if bool(inside.all()) else inside.long().to(place)
        return model(input_ids=tokens.to(place), attention_mask=mask).last_hidden_state

    backbone = Backbone(represent, config.hidden_size, layer, place, model.dtype, checkpoint)
    return Esm2Encoder(backbone, cutting)


def compile_layers(model: EsmModel) -> None:
    """Let torch compile the layers, which are alike: once, for batches of any shape.

    Raises:
        UserError: there is no C compiler.
    """
    check_compiler("embed.proteins.compile")
    for layer in model.encoder.layer:
        layer.compile(dynamic=True)


def read_config(path_or_hub_id: str, revision: str | None, layer: int | None) -> EsmConfig:
    """The configuration of a checkpoint without its weights: of the Hub, ``config.json`` alone is fetched.

    Raises:
        UserError: There is no such checkpoint, it is not ESM2, or it has no such layer.
    """
    folder, _ = _find(path_or_hub_id, revision, weights=False)
    config = _config(folder, path_or_hub_id)
    choose_layer(layer, config.num_hidden_layers, path_or_hub_id)
    return config


def _find(
    path_or_hub_id: str, revision: str | None, weights: bool = True
) -> tuple[Path, Callable[[], dict[str, JSON]]]:
    """The folder, and what identifies it."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"embed.proteins.revision={revision}: {folder} is a folder here and has no revisions")
        return folder, lambda: {"loader": "transformers", "name": folder.name, "sha256": _digests(folder)}
    address = address_of(path_or_hub_id, revision=revision)
    if address is None or address.path:
        raise UserError(f"{path_or_hub_id}: no such folder, and no Hub id (OWNER/NAME)")
    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    found, commit = pull(address, patterns if weights else patterns[:1])
    if weights and not any(found.glob("*.safetensors")):
        found, commit = pull(address, ["config.json", "pytorch_model*"])
    return found, lambda: {"loader": "transformers", "name": address.repo, "revision": commit}


def _digests(folder: Path) -> dict[str, JSON]:
    files = [folder / "config.json", *folder.glob("*.safetensors")]
    if len(files) == 1:
        files += folder.glob("pytorch_model*.bin")
    return {file.name: sha256_file(file) for file in sorted(files)}


def _config(folder: Path, name: str) -> EsmConfig:
    """The configuration, if it is that of ESM2."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: no config.json; give a folder as the Hub holds it")
    with reading(f"{name}: config.json", "a configuration"):
        settings, _ = EsmConfig.get_config_dict(folder)
    # What tells ESM2 from ESM-1b, ESM-1v and ESMFold, which bear the same model type.
    expected = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "vocab_size": SIZE,
    }
    for key, value in expected.items():
        if settings.get(key) != value:
            raise UserError(f"{name}: config.json is not of ESM2: {key} is {shown(settings.get(key))}, not {value!r}")
    if settings.get("is_folding_model"):
        raise UserError(f"{name}: config.json is of ESMFold; give the ESM2 checkpoint that it is built on")
    with reading(f"{name}: config.json", "a configuration of ESM2"):
        return EsmConfig.from_dict(settings)


def _weights(folder: Path, name: str, dtype: torch.dtype, device_map: str | None) -> EsmModel:
    """The model in evaluation mode, with every weight from the folder."""
    with reading(name, "weights of ESM2"):
        model, loading = EsmModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            dtype=dtype,
            device_map=device_map,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # told below, and by name
            output_loading_info=True,
        )
    unfit = sorted(entry for entry in loading["mismatched_keys"] if not entry[0].startswith(_DISPENSABLE))
    if unfit:
        key, found, asked = unfit[0]
        raise UserError(f"{name}: {key} has shape {list(found)}, config.json asks for {list(asked)}")
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith(_DISPENSABLE))
    if missing:
        raise UserError(
            f"{name}: {len(missing)} weights are missing, the first is {missing[0]}; get the checkpoint again"
        )
    surplus = sorted(
        key for key in (key.removeprefix("esm.") for key in loading["unexpected_keys"]) if not key.startswith(_HEADS)
    )
    if surplus:
        raise UserError(
            f"{name}: {len(surplus)} weights have no place in ESM2 as config.json describes it: {surplus[0]}"
        )
    return model.eval()
