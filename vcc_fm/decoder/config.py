"""Configuration of the decoder; with the weights it says everything that a prediction needs."""

from __future__ import annotations

import difflib
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from vcc_fm.ground.errors import UserError

UNFIT = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError, StrictDataclassError)
"""What building a model, or showing it tokens, raises where its config does not fit: each class has its own way."""


def unfit(backbone: dict[str, Any], error: BaseException) -> UserError:
    """What is said of a backbone whose building raised one of ``UNFIT``."""
    said = " ".join(str(error).split())[:300]
    return UserError(f"decoder.backbone: a {backbone['model_type']} of these settings cannot be built: {said}")


class PerturbationDecoderConfig(PretrainedConfig):
    """Self-describing: what goes in, on which gene axis counts come out, and where the weights came from.

    Args:
        backbone: ``transformers`` config of the backbone, as a dictionary with ``model_type``.
        genes: gene axis, ordered symbols.
        control: label of the control cells.
        contexts, batches: labels with learned codes.
        learned_targets: target genes that have a learned vector: those without a protein vector, and those whose
            vector the base knew by name, which have both.
        cell_width, protein_width: lengths of a cell's and a protein's vector.
        cell_encoder, protein_encoder: what the embedding stores say of their encoders, fingerprints included.
        gene_rank: rank of the gene-axis terms.
        response: whether the decoder corrects the response that a mixed model of the training responses expects.
        trust: factor on what was learned beyond that response, 0 to 1, as validation chose it.
        values: value contract of input profiles and output; always raw counts.
        recipe_fingerprint: of the recipe that made the weights.
        simulated: whether the weights were fitted on simulated cells.
        started_from: ``files``, ``licence`` and ``citation`` of weights of others that these ones started from; empty
            where there are none. A decoder that starts from this one inherits it.
        trained_on: context -> perturbations whose measured cells trained it, or what it started from.
        base_in_4bit: whether its adapter was trained on a base in 4 bits, and belongs on no other.
    """

    model_type = "perturbation-decoder"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        genes: list[str] | None = None,
        control: str = "non-targeting",
        contexts: list[str] | None = None,
        batches: list[str] | None = None,
        learned_targets: list[str] | None = None,
        cell_width: int = 1,
        protein_width: int = 1,
        cell_encoder: dict[str, Any] | None = None,
        protein_encoder: dict[str, Any] | None = None,
        gene_rank: int = 32,
        response: bool = True,
        trust: float = 1.0,
        values: str = "counts",
        recipe_fingerprint: str = "",
        simulated: bool = False,
        started_from: dict[str, Any] | None = None,
        trained_on: dict[str, list[str]] | None = None,
        base_in_4bit: bool = False,
        **kwargs: Any,
    ):
        self.backbone = backbone or {"model_type": "llama"}
        self.genes = genes or []
        self.control = control
        self.contexts = contexts or []
        self.batches = batches or []
        self.learned_targets = learned_targets or []
        self.cell_width = cell_width
        self.protein_width = protein_width
        self.cell_encoder = cell_encoder or {}
        self.protein_encoder = protein_encoder or {}
        self.gene_rank = gene_rank
        self.response = response
        self.trust = trust
        self.values = values
        self.recipe_fingerprint = recipe_fingerprint
        self.simulated = simulated
        self.started_from = started_from or {}
        self.trained_on = trained_on or {}
        self.base_in_4bit = base_in_4bit
        super().__init__(**kwargs)

    def backbone_config(self) -> PretrainedConfig:
        """The backbone's own config object.

        Raises:
            ValueError: ``transformers`` knows no such ``model_type``.
        """
        keys = {key: value for key, value in self.backbone.items() if key != "model_type"}
        return AutoConfig.for_model(self.backbone["model_type"], **keys)


def check_backbone(backbone: dict[str, Any]) -> None:
    """Check the keys of a backbone that a recipe asks for; `transformers` itself takes any key and ignores it.

    Raises:
        UserError: ``model_type`` is missing or unknown, or a key is not one of that model's config.
    """
    kind = backbone.get("model_type")
    if kind is None:
        raise UserError("decoder.backbone.model_type is missing; name a transformers model, for example llama")
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"decoder.backbone.model_type={kind}: transformers knows no such model{hint}")
    plain = AutoConfig.for_model(kind)
    known = {*plain.to_dict(), *plain.attribute_map, "model_type"}
    for key in backbone:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"decoder.backbone.{key}: no key of {kind}'s config{hint}")


AutoConfig.register(PerturbationDecoderConfig.model_type, PerturbationDecoderConfig)
