"""The decoder: a `transformers` model around any backbone that takes ``inputs_embeds``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.config import PerturbationDecoderConfig
from vcc_fm.decoder.count_head import CountDistribution, CountHead, GeneFactors
from vcc_fm.decoder.scaling import VectorScaling
from vcc_fm.ground.errors import UserError


class SetDecoder(PreTrainedModel):
    """What decoders of sets share: a backbone that takes tokens without positions, and looks both ways.

    Attributes:
        bf16_backbone: whether the backbone computes in bfloat16; everything around it stays in float32.
    """

    base_model_prefix = "decoder"
    main_input_name = "batch"
    _supports_sdpa = True

    def add_backbone(self, config: PretrainedConfig) -> int:
        """Make the backbone; the width of its tokens."""
        self.bf16_backbone = False
        self.backbone = AutoModel.from_config(config, attn_implementation="sdpa")
        self.backbone.config.use_cache = False
        # Nothing looks up words or pools: frozen, they do not keep DistributedDataParallel waiting for a gradient.
        self.backbone.get_input_embeddings().requires_grad_(False)
        for name, parameter in self.backbone.named_parameters():
            if name.startswith("pooler."):
                parameter.requires_grad_(False)
        # Only the first token is read. So the last layer's feed-forward part, three quarters of its work, sees no
        # other, nor does what follows it, in a backbone that is built like Llama; any other computes all tokens.
        last, norm = getattr(self.backbone, "layers", [None])[-1], getattr(self.backbone, "norm", None)
        if norm is not None and hasattr(getattr(last, "mlp", None), "down_proj"):
            for module in (last.mlp, norm):
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :1].contiguous(), *inputs[1:]))
        return int(config.hidden_size)

    def first_hidden(self, tokens_BLD: torch.Tensor, real_BL: torch.Tensor) -> torch.Tensor:
        """What the backbone makes of the first of tokens [B, L, D]: [B, D] float32.

        It does not see tokens that are not ``real_BL`` (bool).
        """
        # A 4-dimensional mask is taken as it is by every backbone: this is what makes a causal one look both ways. The
        # smallest bfloat16 is a float32 as well, so that autocast does not turn it into an infinity.
        hidden = torch.finfo(torch.bfloat16).min
        mask_BL = torch.zeros(real_BL.shape, device=real_BL.device).masked_fill(~real_BL, hidden)
        mask_B1LL = mask_BL[:, None, None].expand(-1, 1, real_BL.shape[1], -1)
        position_BL = torch.zeros_like(real_BL, dtype=torch.long)
        with torch.autocast(tokens_BLD.device.type, torch.bfloat16, enabled=self.bf16_backbone):
            states = self.backbone(
                inputs_embeds=tokens_BLD, attention_mask=mask_B1LL, position_ids=position_BL
            ).last_hidden_state
        return states[:, 0].float()

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> Any:
        """As of every model of `transformers`, but safetensors only, and refused where weights do not fit the config.

        Raises:
            UserError: tensors are missing, not expected or of another shape.
        """
        asked = options.pop("output_loading_info", False)
        options |= {"use_safetensors": True, "output_loading_info": True}
        model, found = super().from_pretrained(*args, **options)
        # What is missing would be whatever is in memory.
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if wrong := sorted(map(str, found[kind])):
                what = kind.removesuffix("_keys")
                raise UserError(
                    f"{args[0]}: {len(wrong)} tensors are {what}, such as {wrong[0]}; take another checkpoint"
                )
        return (model, found) if asked else model

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module above is initialised where it is made, the backbone by its own class."""

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's; FSDP asks for them."""
        return self.backbone.get_input_embeddings()


class PerturbationDecoder(SetDecoder):
    """Control cells, perturbation tokens and (optionally) an expected response in; a distribution of counts out.

    Token order: set, response, P target genes, S control cells. The set token carries the context's learned code. No
    token has a position and attention is not causal, so that the order of cells and of targets does not matter.
    """

    config_class = PerturbationDecoderConfig

    def __init__(self, config: PerturbationDecoderConfig):
        super().__init__(config)
        width = self.add_backbone(config.backbone_config())
        # What begins every set. A module, so that peft can copy it.
        self.special_token = nn.Embedding(1, width)
        nn.init.normal_(self.special_token.weight, std=0.02)
        self.context_code = nn.Embedding(len(config.contexts) + 1, width)
        self.batch_code = nn.Embedding(len(config.batches) + 1, width)
        self.learned_target = nn.Embedding(len(config.learned_targets) + 1, width)
        self.cell_scaling = VectorScaling(config.cell_width)
        self.protein_scaling = VectorScaling(config.protein_width)
        self.cell_projection = _projection(config.cell_width + 1, width)
        self.target_projection = _projection(config.protein_width, width)
        self.response_projection = nn.Linear(config.gene_rank + 2, width)
        self.token_norm = nn.LayerNorm(width)
        self.gene_factors = GeneFactors(len(config.genes), config.protein_width, config.gene_rank)
        self.head = CountHead(config, width)
        for table in (self.context_code, self.batch_code, self.learned_target):
            nn.init.zeros_(table.weight)
        self.post_init()

    def tokens(self, batch: Batch, response_BR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token vectors [B, 2 + P + S, D] and which of them are real [B, 2 + P + S] bool.

        Args:
            batch: B cell sets.
            response_BR: their expected responses, seen through the gene factors.
        """
        sets = len(batch)
        set_1D = self.special_token(torch.zeros(1, dtype=torch.long, device=batch.context_code_B.device))
        set_B1D = (set_1D + self.context_code(batch.context_code_B))[:, None]
        # Beside its direction: how large the response is, and how uncertain, on a log scale around a tenth.
        sizes_BG = torch.stack([batch.response_BG, batch.deviation_BG], dim=1)
        sizes_B2 = (sizes_BG.square().mean(-1) + 1e-6).log() / 2 + 2.3
        response_BD = self.response_projection(torch.cat([response_BR, sizes_B2], dim=-1))
        target_BPV = self.protein_scaling(batch.target_vector_BPV)
        # A target gene without a protein vector is the average one; it has a learned vector of its own.
        target_BPV = target_BPV.masked_fill(~batch.target_vector_BPV.any(-1, keepdim=True), 0.0)
        target_BPD = self.target_projection(target_BPV) + self.learned_target(batch.target_code_BP)
        # Depth enters on the log scale around a typical 10^4 UMI, so that it has the size of the other inputs.
        depth_BS1 = (batch.control_depth_BS.log() - 9.2)[..., None]
        cells_BSD = self.cell_projection(torch.cat([self.cell_scaling(batch.cells_BSE), depth_BS1], dim=-1))
        cells_BSD = cells_BSD + self.batch_code(batch.batch_code_BS)
        tokens_BLD = torch.cat([set_B1D, response_BD[:, None], target_BPD, cells_BSD], dim=1)
        always_B2 = torch.ones(sets, 2, dtype=torch.bool, device=tokens_BLD.device)
        real_BL = torch.cat([always_B2, batch.target_mask_BP, batch.cell_mask_BS], dim=1)
        return self.token_norm(tokens_BLD), real_BL

    def forward(self, batch: Batch, effect_scale: float = 1.0, in_size: bool = False) -> CountDistribution:
        """Distribution of the counts of B sets of S cells.

        Args:
            batch: B cell sets.
            effect_scale: factor on the log ratio to the control profile; 0 predicts the control profile itself.
            in_size: see :class:`CountHead`.
        """
        tokens_BLD, real_BL = self.tokens(batch, self.gene_factors(batch.response_BG))
        set_state_BD = self.first_hidden(tokens_BLD, real_BL)
        return self.head(set_state_BD, self.gene_factors, batch, self.config.trust, effect_scale, in_size)


def _projection(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))


AutoModel.register(PerturbationDecoderConfig, PerturbationDecoder)
