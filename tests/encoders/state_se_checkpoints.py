"""Small random checkpoints of SE, as a folder and in arc-state's own kind, with the same weights."""

import math
from pathlib import Path
from typing import Any

import anndata
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from vcc_fm.encoders.cells.state_se_geometry import TIED, SeGeometry

TINY = SeGeometry(width=64, hidden=96, layers=3, heads=4, output=32, token_dim=48, genes=150, datasets=7)
NEEDS_STATE = "needs arc-state: pip install -e '.[peers]'"


def tiny(genes: int) -> SeGeometry:
    """:data:`TINY` with another number of genes."""
    return SeGeometry(width=64, hidden=96, layers=3, heads=4, output=32, token_dim=48, genes=genes, datasets=7)


def random_names(geometry: SeGeometry) -> list[str]:
    """Gene symbols, one per row of the ESM table, not in alphabetical order."""
    order = torch.randperm(geometry.genes, generator=torch.Generator().manual_seed(3)).tolist()
    return [f"GENE{number}" for number in order]


def random_tensors(geometry: SeGeometry, seed: int = 11) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, tied copies included, at a scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for key, shape in geometry.shapes().items():
        if key in TIED:
            continue
        values = torch.randn(shape, generator=generator)
        if len(shape) == 1:  # biases, and weights of layer norms
            values = 0.1 * values + (1.0 if _is_norm(key) else 0.0)
        elif key.endswith("weight") and key not in (
            "pe_embedding.weight",
            "bin_encoder.weight",
            "count_encoder.0.weight",
        ):
            values /= math.sqrt(3 * shape[1])  # as torch initialises linear layers
        tensors[key] = values
    return tensors | {copy: tensors[key].clone() for copy, key in TIED.items()}


def _is_norm(key: str) -> bool:
    return key.endswith(
        (".norm1.weight", ".norm2.weight", ".layer_norm.weight", "encoder.1.weight", "encoder.2.weight")
    )


def protein_embeddings(tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Gene symbol -> its row of the ESM table."""
    return {name: row.clone() for name, row in zip(names, tensors["pe_embedding.weight"], strict=True)}


def write_folder(path: Path, tensors: dict[str, Tensor], names: list[str], heads: int | None = 4) -> Path:
    """model.safetensors, protein_embeddings.pt and, unless heads is None, config.yaml, as the Hub holds them."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    torch.save(protein_embeddings(tensors, names), path / "protein_embeddings.pt")
    if heads is not None:
        (path / "config.yaml").write_text(yaml.safe_dump({"model": {"nhead": heads}}))
    return path


def arc_config(geometry: SeGeometry, pad: int) -> Any:
    """arc-state's configuration for a geometry and a number of tokens per cell, CLS included."""
    from importlib.resources import files

    from omegaconf import OmegaConf

    config = OmegaConf.load(str(files("state") / "configs" / "state-defaults.yaml"))
    changes = {
        "model": {
            "emsize": geometry.width,
            "d_hid": geometry.hidden,
            "nhead": geometry.heads,
            "nlayers": geometry.layers,
            "output_dim": geometry.output,
            "batch_size": 16,
            "rda": True,
            "counts": True,
            "dataset_correction": True,
        },
        "tokenizer": {"token_dim": geometry.token_dim},
        "dataset": {
            "pad_length": pad,
            "P": 8,
            "N": 8,
            "S": 8,
            "current": "tiny",
            "tiny": {"num_datasets": geometry.datasets, "ds_type": "h5ad"},
        },
        "embeddings": {
            "current": "tiny",
            "tiny": {
                "size": geometry.token_dim,
                "num": geometry.genes,
                "all_embeddings": None,
                "ds_emb_mapping": None,
                "valid_genes_masks": None,
            },
        },
    }
    return OmegaConf.merge(config, changes)


def write_arc_checkpoint(
    path: Path, tensors: dict[str, Tensor], names: list[str], geometry: SeGeometry, pad: int
) -> Path:
    """A checkpoint that arc-state's ``Inference().load_model`` accepts."""
    from omegaconf import OmegaConf

    settings = {
        "token_dim": geometry.token_dim,
        "d_model": geometry.width,
        "nhead": geometry.heads,
        "d_hid": geometry.hidden,
        "nlayers": geometry.layers,
        "output_dim": geometry.output,
        "dropout": 0.1,
    }
    torch.save(
        {
            "state_dict": tensors,
            "hyper_parameters": settings,
            "cfg_yaml": OmegaConf.to_yaml(arc_config(geometry, pad)),
            "protein_embeds_dict": protein_embeddings(tensors, names),
            "pytorch-lightning_version": "2.6.6",
        },
        path,
    )
    return path


def load_arc(folder: Path, tensors: dict[str, Tensor], names: list[str], geometry: SeGeometry, pad: int) -> Any:
    """arc-state's Inference with these weights in float32: ``.model``, ``.encode_adata(h5ad, None)``."""
    from state.emb.inference import Inference

    inference = Inference()
    inference.load_model(str(write_arc_checkpoint(folder / "arc.ckpt", tensors, names, geometry, pad)))
    return inference


def arc_batch(
    inference: Any,
    cells: anndata.AnnData,
    tensors: dict[str, Tensor],
    names: list[str],
    geometry: SeGeometry,
    pad: int,
) -> Any:
    """First batch (16 cells) of arc-state's data loader: [0] ids [b, pad], [7] values [b, pad]; place 0 is CLS."""
    from state.emb.data import create_dataloader

    loader = create_dataloader(
        arc_config(geometry, pad),
        adata=cells,
        adata_name="cells",
        protein_embeds=protein_embeddings(tensors, names),
        precision=torch.float32,
        gene_column=None,
    )
    return next(iter(loader))
