"""Sections on the network and its adapters."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vcc_fm.recipe.section import Fraction, PositiveInt, Section

GENE_AXES = 32
"""Principal components of proteins by which a decoder knows the genes: as many as are tried for likeness."""


class LoraSettings(Section):
    """Low-rank adapters on the backbone's linear layers (`peft`)."""

    r: PositiveInt = Field(8, description="rank of the adapters")
    alpha: PositiveInt = Field(16, description="scale of the adapters: alpha / r")
    dropout: Fraction = Field(0.0, description="dropout on the adapters' input")
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = Field(
        "all-linear", description="linear layers of the backbone to adapt, by name (q_proj, v_proj, ...)"
    )
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="blocks of the backbone to adapt, counted from 0; null: all"
    )
    full: list[str] = Field([], description="modules of the backbone to train in full, by name (norm, ...)")
    rslora: bool = Field(False, description="scale of the adapters alpha / sqrt(r) (rsLoRA), for high ranks")
    dora: bool = Field(False, description="adapt direction and size of the weights apart (DoRA); slower")
    load_in_4bit: bool = Field(
        False,
        description="hold the backbone's linear layers in 4 bits under the adapters (QLoRA: nf4 of bitsandbytes, "
        "doubly quantised), an eighth of float32; needs the extra qlora",
    )


class BackboneSettings(Section):
    """A transformer, from scratch or under adapters."""

    base: str = Field(
        "scratch",
        description="scratch (train everything), pretrain (the base this recipe makes), a folder or a Hub id; of a "
        "run of Arc's ST its folder, or a .ckpt file in it",
    )
    revision: str | None = Field(None, description="revision of the Hub id")
    backbone: dict[str, str | int | float | bool | None] = Field(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 1,
        },
        description="transformers config of a backbone made from scratch: model_type and its own keys",
    )
    lora: LoraSettings = Field(LoraSettings(), description="adapters, used with every base but scratch")

    @model_validator(mode="after")
    def _has_a_base_to_hold(self) -> Self:
        if self.lora.load_in_4bit and self.base == "scratch":
            raise ValueError(
                "decoder.lora.load_in_4bit: with decoder.base=scratch everything trains, and nothing can be held in 4 "
                "bits; name a base, or set it to false"
            )
        return self


class DecoderSettings(BackboneSettings):
    """The network that turns control cells and perturbation tokens into counts."""

    gene_rank: PositiveInt = Field(32, description="rank of the gene-axis terms")
    response: bool = Field(
        True,
        description="start from the response that a mixed model of the training responses expects (of a training "
        "group, as if it had not been measured), and correct it",
    )
    unmeasured: Literal["missing", "unchanged"] = Field(
        "missing",
        description="response of a gene that a source did not measure, for mixed model and baselines: missing; or "
        "unchanged, as if its counts were those that its mean share in the controls of other batches makes expected",
    )
    code_dropout: Fraction = Field(
        0.3,
        description="share of sets whose learned context and batch codes are hidden, and the learned vectors of "
        "target genes that have a protein vector",
    )
    response_dropout: Fraction = Field(
        0.3,
        description="share of training sets that are given what would be expected if their perturbation had been "
        "measured in no context",
    )
