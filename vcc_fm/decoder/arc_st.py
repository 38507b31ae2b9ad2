"""Arc's ST as a base: what of a checkpoint that `state tx train` wrote has a place in the decoder.

Written from the layout of the files and from what is known of the model, not from its code. Nothing is unpickled but
tensors and plain values; ``var_dims.pkl`` is never opened.

- The llama layers and the final norm are taken by name. ST has no positions, and a llama turns no channel at position
  0, where all tokens of the decoder stand: the same inputs give the same hidden states.
- ST's vector of a perturbation is what its ``pert_encoder`` makes of the perturbation's column. ST adds it to every
  cell; the decoder has a token for it, which is normalised. Its size means nothing there, and what all perturbations
  have in common would hide what one has of its own: it is scaled as all vectors are that the decoder reads.
- What is left belongs to ST's own input and output, and is not taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn.functional import gelu, linear

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.decoder.scaling import VectorScaling
from vcc_fm.encoders import arc_terms
from vcc_fm.encoders.torch_file import load_plain, symbol_vectors
from vcc_fm.ground.errors import UserError, reading, shown
from vcc_fm.ground.identity import arc_st_folder, base_identity

_BACKBONE, _WORDS = "transformer_backbone.", "embed_tokens.weight"
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Where there are several: the end of training. `best` may have been chosen on the test set.
_FINAL = ("final.ckpt", "last.ckpt")
# Labels may be numpy's strings: what makes these of text, under its names in numpy 2 and 1.
_MAKES_LABELS = np.str_().__reduce__()[0]
_LABELS: list[Any] = [_MAKES_LABELS, (_MAKES_LABELS, "numpy.core.multiarray.scalar"), np.dtype, np.dtypes.StrDType]


def find_st(base: str) -> ArcSt | None:
    """The run of ST that ``base`` names: a folder that `state tx train` wrote, or a ``.ckpt`` file in one.

    Returns:
        None where ``base`` is something else.

    Raises:
        UserError: there is no such file, or it is not clear which of several is meant.
    """
    path = Path(base)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise UserError(f"decoder.base={base}: no such file")
        return ArcSt(arc_st_folder(path), path)
    files = {file.name: file for file in sorted(path.glob("checkpoints/*.ckpt"))}
    if not files or not (path / "config.yaml").is_file():
        return None
    for name in _FINAL:
        if name in files:
            return ArcSt(path, files[name])
    if len(files) > 1:
        raise UserError(f"decoder.base={base}: it has {', '.join(files)}; give the path of one")
    return ArcSt(path, *files.values())


@dataclass(frozen=True)
class ArcSt:
    """A run of ST.

    Attributes:
        folder: with ``config.yaml`` and ``pert_onehot_map.pt``.
        file: the checkpoint.
    """

    folder: Path
    file: Path

    @cached_property
    def _config(self) -> dict[str, Any]:
        """Section ``model.kwargs`` of ``config.yaml``, and the control label, as ``control_pert``."""
        path = self.folder / "config.yaml"
        with reading(path, "YAML", "give a folder as state tx train writes it"):
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        match read:
            case {"model": {"kwargs": {"transformer_backbone_kwargs": dict()} as settings}}:
                data = read.get("data")
                about = data.get("kwargs") if isinstance(data, dict) else None
                return {**settings, "control_pert": about.get("control_pert") if isinstance(about, dict) else None}
        raise UserError(f"{path}: no model.kwargs.transformer_backbone_kwargs: it is no run of ST")

    @property
    def backbone(self) -> dict[str, Any]:
        """Config of a llama of ST's sizes, from ``config.yaml`` alone.

        Raises:
            UserError: it is no config of ST, its backbone is no llama, or `transformers` builds none of these sizes.
        """
        path, kind = self.folder / "config.yaml", self._config.get("transformer_backbone_key")
        if kind != "llama":
            raise UserError(f"{path}: the backbone is {shown(kind)}; of ST's backbones llama alone can be a base")
        told = self._config["transformer_backbone_kwargs"]
        sizes = {name: told.get(name) for name in _SIZES}
        sizes["num_key_value_heads"] = told.get("num_key_value_heads") or sizes["num_attention_heads"]
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise UserError(f"{path}: {name} is {shown(size)}, where a size is expected")
        width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        channels = told.get("head_dim") or width // heads
        if width % heads or type(channels) is not int or channels < 2 or channels % 2:
            raise UserError(
                f"{path}: hidden_size {width}, {heads} heads of {shown(channels)}: transformers builds a llama only "
                "where the heads divide its width, and their own is even; take another checkpoint"
            )
        others = {name: told[name] for name in ("rms_norm_eps", "hidden_act") if name in told}
        fixed = {"model_type": "llama", "head_dim": channels, "rms_norm_eps": 1e-6, "vocab_size": 1}
        return {**fixed, **sizes, **others}

    @cached_property
    def _inputs(self) -> dict[str, Tensor]:
        """What ``pert_encoder`` reads: label -> one-hot column, or features."""
        path = self.folder / "pert_onehot_map.pt"
        with torch.serialization.safe_globals(_LABELS):
            read = load_plain(path, "a map of perturbations", "give a folder as state tx train writes it")
        return {str(label): vector for label, vector in symbol_vectors(read, path).items()}

    @cached_property
    def _labels(self) -> list[str]:
        """Labels of the perturbations, without the control."""
        return [label for label in self._inputs if label != self._config["control_pert"]]

    @cached_property
    def _one_hot(self) -> bool:
        rows = torch.stack(list(self._inputs.values()))
        return len(rows) == rows.shape[1] and bool(((rows.count_nonzero(1) == 1) & (rows.sum(1) == 1)).all())

    def known(self, targets: set[str]) -> set[str]:
        """Those of ``targets`` that ST has a vector of by label; none where it reads features.

        Raises:
            UserError: the map of perturbations cannot be read.
        """
        return targets.intersection(self._labels) if self._one_hot else set()

    def vectors(self, data: Dataset) -> dict[str, Tensor]:
        """ST's vectors [D] of target genes of ``data``, minus their mean and divided by one number.

        Where ST reads features, a target gene is known if its features are its protein vector here.

        Raises:
            UserError: map or weights cannot be read, or do not fit each other or the config.
        """
        known, ours = self.known(data.all_targets), data.protein_vectors.vectors
        if not self._one_hot:
            row = {
                one: data.protein_rows[one] for one in data.all_targets.intersection(self._labels, data.protein_rows)
            }
            known = {one for one in row if np.array_equal(self._inputs[one].float().numpy(), ours[row[one]])}
        if not known:
            return {}
        encoded = self._encoded(torch.stack([self._inputs[label] for label in self._labels]))
        scaling = VectorScaling(encoded.shape[1])
        scaling.fit(encoded.numpy())
        return {label: vector for label, vector in zip(self._labels, scaling(encoded), strict=True) if label in known}

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        match load_plain(self.file, "a checkpoint of ST", "save its state_dict again, as tensors alone"):
            case {"state_dict": Mapping() as tensors} if all(isinstance(value, Tensor) for value in tensors.values()):
                return {str(name): tensor for name, tensor in tensors.items()}
        raise UserError(f"{self.file}: no state_dict of tensors in it: it is no checkpoint of ST")

    def _encoded(self, rows: Tensor) -> Tensor:
        """``pert_encoder`` of ``rows`` [n, its input]: linear layers with GELU between them, [n, D]."""
        names = (re.fullmatch(r"pert_encoder\.(\d+)\.weight", name) for name in self._tensors)
        layers = sorted(int(name[1]) for name in names if name)
        with reading(self.file, "a checkpoint of ST"):
            for layer in layers:
                rows = gelu(rows) if layer != layers[0] else rows.float()
                weight, bias = (self._tensors[f"pert_encoder.{layer}.{part}"].float() for part in ("weight", "bias"))
                rows = linear(rows, weight, bias)
        if not layers or rows.shape[1] != self.backbone["hidden_size"] or not torch.isfinite(rows).all():
            raise UserError(f"{self.file}: its pert_encoder gives no finite vectors of the width of config.yaml")
        return rows

    def move_into(self, decoder: PerturbationDecoder, vectors: Mapping[str, Tensor], targets: int) -> list[str]:
        """Give a new decoder the layers, the ``vectors`` of some of its ``targets`` target genes, and the terms.

        Returns:
            What was taken and what was not, one sentence each.

        Raises:
            UserError: tensors are missing, surplus, not finite or of other sizes than the config says.
        """
        layers = self._layers(decoder)
        rows = {label: row + 1 for row, label in enumerate(decoder.config.learned_targets)}
        own = decoder.backbone.state_dict()
        with torch.no_grad():
            for name, tensor in layers.items():
                own[name].copy_(tensor)
            for label, vector in vectors.items():
                decoder.learned_target.weight[rows[label]] = vector
        terms = {"licence": arc_terms.ST, "citation": arc_terms.CITATION}
        decoder.config.started_from = {"files": base_identity(self.file), **terms}
        return self._notes(f"{len(vectors)} of {targets}")

    def _layers(self, decoder: PerturbationDecoder) -> dict[str, Tensor]:
        """The tensors of the llama by their names in ``decoder``'s, checked."""
        cut, tensors = len(_BACKBONE), self._tensors
        found = {name[cut:]: tensor for name, tensor in tensors.items() if name.startswith(_BACKBONE)}
        wanted = decoder.backbone.state_dict()
        del wanted[_WORDS]
        found.pop(_WORDS, None)
        if odd := sorted(wanted.keys() ^ found.keys()):
            what = "lacks" if odd[0] in wanted else "has adapters or other tensors beside a llama's:"
            raise UserError(f"{self.file}: {what} {_BACKBONE}{odd[0]} ({len(odd)} in all); take another checkpoint")
        for name, tensor in found.items():
            size, told = list(tensor.shape), list(wanted[name].shape)
            if size != told:
                raise UserError(
                    f"{self.file}: {_BACKBONE}{name} is {size}, by config.yaml {told}; take another checkpoint"
                )
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise UserError(f"{self.file}: {_BACKBONE}{name} is not of finite numbers; take another checkpoint")
        return found

    def _notes(self, known: str) -> list[str]:
        """What is taken, what is not, and the terms."""
        # Of every name the module: basal_encoder.0.weight is of basal_encoder.
        left = {name.partition(".")[0] for name in self._tensors} - {_BACKBONE[:-1], "pert_encoder"}
        parts = [*sorted(left), "embed_tokens"]
        if not self._one_hot and known.startswith("0 "):
            parts.append("pert_encoder (it reads other features than the protein vectors here)")
        notes = [
            f"from ST ({self.file.name}) come its llama layers, its final norm, and vectors of {known} target genes; "
            "ST adds these to every cell, here they stand in a token: so they are centred and brought to one size",
            f"not taken from ST: {', '.join(parts)}; what reads cells and proteins starts anew and is trained",
        ]
        if self._config.get("mask_attn"):
            notes.append("ST was trained with mask_attn: its layers never saw one cell beside another")
        return [*notes, f"licence of the base: {arc_terms.ST}"]
