"""Arc's ST as a base, on runs that the tests write in the layout of `state tx train`."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from program import QUIET
from torch.nn.functional import gelu, silu, softmax

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.arc_st import find_st
from vcc_fm.decoder.build import build_decoder
from vcc_fm.decoder.load import load_decoder
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.plan import make_plan
from vcc_fm.training.accelerator import count_parameters
from vcc_fm.training.phase import Phase, train_phase

WIDTH, INNER, LAYERS, HEADS, CELL = 16, 24, 2, 2, 5
CONFIG: dict[str, Any] = {
    "data": {"name": "PerturbationDataModule", "kwargs": {"control_pert": "ctrl", "pert_rep": "onehot"}},
    "model": {
        "name": "state",
        "kwargs": {
            "hidden_dim": WIDTH,
            "mask_attn": False,
            "transformer_backbone_key": "llama",
            "transformer_backbone_kwargs": {
                "bidirectional_attention": True,
                "max_position_embeddings": 8,
                "hidden_size": WIDTH,
                "intermediate_size": INNER,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS,
                "head_dim": WIDTH // HEADS,
                "layer_norm_eps": 1e-6,
                "rotary_dim": 0,
            },
        },
    },
}
LABELS = ["A+B", "SIM0005", "SIM0003", "ELSEWHERE", "ctrl"]
Tensors = dict[str, torch.Tensor]


def tensors(inputs: int = len(LABELS)) -> Tensors:
    """A state_dict as ST's: random, but for the embedding of words."""
    generator = torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {"transformer_backbone.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        at = f"transformer_backbone.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{at}mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes |= {f"{at}mlp.down_proj.weight": (WIDTH, INNER)}
    for name, ends in {"pert_encoder": (inputs, WIDTH), "project_out": (WIDTH, CELL)}.items():
        first, last = (WIDTH, ends[0]), (ends[1], WIDTH)
        shapes |= {f"{name}.0.weight": first, f"{name}.0.bias": (WIDTH,)}
        shapes |= {f"{name}.3.weight": last, f"{name}.3.bias": last[:1]}
    shapes |= {
        "basal_encoder.weight": (WIDTH, CELL),
        "basal_encoder.bias": (WIDTH,),
        "batch_encoder.weight": (3, WIDTH),
    }
    made = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return {"transformer_backbone.embed_tokens.weight": torch.zeros(7, WIDTH), **made}


def one_hot(labels: list[str] = LABELS) -> Tensors:
    """The map of perturbations, under numpy's strings as cell-load has them."""
    return dict(zip(map(np.str_, labels), torch.eye(len(labels)), strict=True))


def write_run(folder: Path, state: Any = None, inputs: Any = None, edit: Callable[[Any], None] | None = None) -> Path:
    """Write a run of ST; what is left out is as it should be."""
    config = deepcopy(CONFIG)
    if edit is not None:
        edit(config["model"]["kwargs"])
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(one_hot() if inputs is None else inputs, folder / "pert_onehot_map.pt")
    checkpoint = {"epoch": 0, "state_dict": tensors() if state is None else state, "hyper_parameters": {"lr": 1e-4}}
    torch.save(checkpoint, folder / "checkpoints" / "final.ckpt")
    (folder / "var_dims.pkl").write_bytes(b"never opened")
    return folder


@pytest.fixture(scope="module")
def data(tiny_run: Recipe) -> Dataset:
    return load_dataset(tiny_run, 0)


def started(recipe: Recipe, data: Dataset, base: Path) -> tuple[PerturbationDecoder, list[str]]:
    model, notes = build_decoder(recipe.decoder, data, str(base), 0)
    assert any("lora_A" in name for name, _ in model.named_parameters())
    decoder = model.merge_and_unload()
    assert isinstance(decoder, PerturbationDecoder)
    return decoder.eval(), notes


# ------------------------------------------------------------------------------------------------- what is taken over
def test_the_layers_arrive_bit_for_bit_and_frozen(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    base = write_run(tmp_path)
    model, _ = build_decoder(tiny_run.decoder, data, str(base), 0)
    assert not [n for n, p in model.named_parameters() if p.requires_grad and "backbone" in n and "lora" not in n]
    decoder, _ = started(tiny_run, data, base)
    ours, theirs = decoder.backbone.state_dict(), tensors()
    taken = {name for name in theirs if name.startswith("transformer_backbone.") and "embed_tokens" not in name}
    assert {f"transformer_backbone.{name}" for name in ours} - {"transformer_backbone.embed_tokens.weight"} == taken
    for name in taken:
        assert torch.equal(ours[name.removeprefix("transformer_backbone.")], theirs[name]), name


def test_vectors_of_known_targets_arrive_and_no_others(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    decoder, _ = started(tiny_run, data, write_run(tmp_path))
    assert {"SIM0005", "SIM0003"} < data.all_targets, "this test needs them"
    assert decoder.config.learned_targets == ["SIM0003", "SIM0005"]
    state = tensors()
    # The column of a one-hot input is a column of the first layer.
    hidden = gelu(state["pert_encoder.0.weight"].T + state["pert_encoder.0.bias"])
    vectors = hidden @ state["pert_encoder.3.weight"].T + state["pert_encoder.3.bias"]
    vectors = vectors[:-1]  # without the control
    vectors = (vectors - vectors.mean(0)) / vectors.var(0, correction=0).mean().sqrt()
    torch.testing.assert_close(decoder.learned_target.weight[1:], vectors[[2, 1]], rtol=1e-5, atol=1e-5)
    assert decoder.learned_target.weight[0].abs().sum() == 0


def test_a_single_linear_layer_encodes_as_well(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    state = {name: value for name, value in tensors().items() if not name.startswith("pert_encoder.3")}
    decoder, _ = started(tiny_run, data, write_run(tmp_path, state))
    difference = state["pert_encoder.0.weight"][:, 2] - state["pert_encoder.0.weight"][:, 1]
    found = decoder.learned_target.weight[1] - decoder.learned_target.weight[2]
    torch.testing.assert_close(found / found.norm(), difference / difference.norm())


def test_the_notes_name_what_is_not_taken_and_the_terms(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    write_run(tmp_path, edit=lambda settings: settings.update(mask_attn=True))
    decoder, (taken, left, masked, terms) = started(tiny_run, data, tmp_path)
    assert f"vectors of 2 of {len(data.all_targets)} target genes" in taken
    assert "not taken from ST: basal_encoder, batch_encoder, project_out, embed_tokens;" in left
    assert "mask_attn" in masked
    assert "Non-Commercial License" in terms
    assert decoder.config.started_from["licence"] in terms
    assert decoder.config.started_from["files"].keys() == {"final.ckpt", "config.yaml", "pert_onehot_map.pt"}


@torch.no_grad()
def test_the_backbone_is_a_bidirectional_llama_without_positions(
    tiny_run: Recipe, data: Dataset, tmp_path: Path
) -> None:
    decoder, _ = started(tiny_run, data, write_run(tmp_path))
    hidden_BLD = torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    mask, position = torch.zeros(3, 1, 7, 7), torch.zeros(3, 7, dtype=torch.long)
    found = decoder.backbone(inputs_embeds=hidden_BLD, attention_mask=mask, position_ids=position).last_hidden_state
    torch.testing.assert_close(found, _plain_llama(hidden_BLD, tensors())[:, :1], rtol=1e-5, atol=1e-5)


def _plain_llama(hidden: torch.Tensor, state: Tensors) -> torch.Tensor:
    """Pre-norm attention of all to all and gated network, from the published equations."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return state[f"transformer_backbone.{name}.weight"] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    for layer in range(LAYERS):
        weight = {part: state[f"transformer_backbone.layers.{layer}.{part}_proj.weight"].T for part in _PARTS}
        x = norm(hidden, f"layers.{layer}.input_layernorm")
        heads = []
        for head in range(HEADS):
            own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            query, key, value = ((x @ weight[f"self_attn.{part}"])[..., own] for part in "qkv")
            heads.append(softmax(query @ key.transpose(1, 2) / math.sqrt(WIDTH // HEADS), -1) @ value)
        hidden = hidden + torch.cat(heads, -1) @ weight["self_attn.o"]
        x = norm(hidden, f"layers.{layer}.post_attention_layernorm")
        hidden = hidden + (silu(x @ weight["mlp.gate"]) * (x @ weight["mlp.up"])) @ weight["mlp.down"]
    return norm(hidden, "norm")


_PARTS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


@pytest.mark.parametrize("same", [True, False])
def test_features_are_matched_with_the_protein_vectors(
    tiny_run: Recipe, data: Dataset, tmp_path: Path, same: bool
) -> None:
    row = data.protein_rows
    vectors = {label: torch.from_numpy(data.protein_vectors.vectors[row[label]].copy()) for label in LABELS[1:3]}
    if not same:
        vectors = {label: vector + 0.5 for label, vector in vectors.items()}
    features = {**vectors, "ctrl": torch.zeros(data.protein_vectors.width)}
    state = tensors(data.protein_vectors.width)
    decoder, notes = started(tiny_run, data, write_run(tmp_path, state, features))
    assert decoder.config.learned_targets == (["SIM0003", "SIM0005"] if same else [])
    assert ("pert_encoder (it reads other features" in notes[1]) is not same


def test_a_decoder_that_started_from_st_is_a_base_with_its_vectors_and_terms(
    tiny_run: Recipe, data: Dataset, tmp_path: Path
) -> None:
    decoder, notes = started(tiny_run, data, write_run(tmp_path / "st"))
    decoder.save_pretrained(tmp_path / "saved")
    assert load_decoder(tmp_path / "saved").config.started_from == decoder.config.started_from
    again, (terms,) = started(tiny_run, data, tmp_path / "saved")
    assert terms == notes[-1]
    assert again.config.started_from == decoder.config.started_from
    assert again.config.learned_targets == ["SIM0003", "SIM0005"]
    assert torch.equal(again.learned_target.weight, decoder.learned_target.weight)


# ---------------------------------------------------------------------------------------------------- plan, and which
def test_a_plan_counts_its_parameters_without_the_weights(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    base = write_run(tmp_path)
    recipe = tiny_run.model_copy(update={"decoder": tiny_run.decoder.model_copy(update={"base": str(base)})})
    parameters = count_parameters(build_decoder(recipe.decoder, data, str(base), 0)[0])
    (base / "checkpoints" / "final.ckpt").write_bytes(b"not read")
    plan = make_plan(recipe, 1)
    assert plan["problems"] == []
    assert (plan["decoder"]["parameters"], plan["decoder"]["trainable"]) == parameters


def test_other_content_is_another_base(tiny_run: Recipe, tmp_path: Path) -> None:
    def fingerprint(base: Path) -> str:
        decoder = tiny_run.decoder.model_copy(update={"base": str(base)})
        return Layout(tiny_run.model_copy(update={"decoder": decoder})).decoder(0, "train").fingerprint

    file = tmp_path / "checkpoints" / "final.ckpt"
    before = [fingerprint(path) for path in (write_run(tmp_path), file)]
    assert [fingerprint(path) for path in (write_run(tmp_path), file)] == before
    state = tensors()
    state["transformer_backbone.norm.weight"][0] += 1
    write_run(tmp_path, state)
    assert not {fingerprint(path) for path in (tmp_path, file)} & {*before}


def test_the_checkpoint_of_several(tmp_path: Path) -> None:
    write_run(tmp_path)
    folder = tmp_path / "checkpoints"
    (folder / "best.ckpt").touch()
    assert find_st(str(tmp_path)).file.name == "final.ckpt"
    assert find_st(str(folder / "best.ckpt")).folder == tmp_path
    (folder / "final.ckpt").rename(folder / "step=2.ckpt")
    with pytest.raises(UserError, match=r"it has best.ckpt, step=2.ckpt; give the path of one"):
        find_st(str(tmp_path))
    (folder / "best.ckpt").unlink()
    assert find_st(str(tmp_path)).file.name == "step=2.ckpt"
    with pytest.raises(UserError, match=r"none.ckpt: no such file"):
        find_st(str(tmp_path / "none.ckpt"))
    (tmp_path / "config.yaml").unlink()
    assert find_st(str(tmp_path)) is None


# --------------------------------------------------------------------------------------------------- what is refused
class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap-was-sprung"),))


def sizes(**changed: Any) -> Callable[[Any], None]:
    return lambda settings: settings["transformer_backbone_kwargs"].update(changed)


def with_tensor(name: str, value: torch.Tensor | None) -> Tensors:
    state = tensors()
    state.pop(name, None)
    return state if value is None else {**state, name: value}


DOWN = "transformer_backbone.layers.1.mlp.down_proj.weight"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "code in the weights": ({"state": {"x": _Trap()}}, "only an unsafe load can read"),
    "code in the map": ({"inputs": {"A": _Trap()}}, "only an unsafe load can read"),
    "no state": ({"state": {"x": 3}}, "no state_dict of tensors"),
    "a tensor too few": ({"state": with_tensor(DOWN, None)}, rf"final.ckpt: lacks {DOWN} \(1 in all\)"),
    "adapters": (
        {"state": with_tensor("transformer_backbone.layers.0.self_attn.q_proj.lora_A.weight", torch.zeros(2, WIDTH))},
        "adapters or other tensors",
    ),
    "another shape": (
        {"state": with_tensor(DOWN, torch.zeros(WIDTH, INNER + 1))},
        rf"{DOWN} is \[16, 25\], by config.yaml \[16, 24\]",
    ),
    "NaN": ({"state": with_tensor(DOWN, torch.full((WIDTH, INNER), torch.nan))}, "not of finite numbers"),
    "whole numbers": (
        {"state": with_tensor(DOWN, torch.ones(WIDTH, INNER, dtype=torch.long))},
        "not of finite numbers",
    ),
    "no encoder": (
        {"state": {name: value for name, value in tensors().items() if "pert_encoder" not in name}},
        "its pert_encoder gives no finite vectors",
    ),
    "an encoder of other labels": ({"state": tensors(9)}, "final.ckpt is not readable as a checkpoint of ST"),
    "an encoder without bias": (
        {"state": with_tensor("pert_encoder.3.bias", None)},
        "final.ckpt is not readable as a checkpoint of ST",
    ),
    "no vectors": ({"inputs": {"A": 1}}, "A is int where a 1-D float vector is expected"),
    "GPT2": (
        {"edit": lambda settings: settings.update(transformer_backbone_key="GPT2")},
        "config.yaml: the backbone is 'GPT2'; of ST's backbones llama alone",
    ),
    "no ST": ({"edit": dict.clear}, "config.yaml: no model.kwargs.transformer_backbone_kwargs"),
    "a size that is none": ({"edit": sizes(hidden_size="x")}, "hidden_size is 'x'"),
    "odd heads": (
        {"edit": sizes(hidden_size=328, num_attention_heads=12, head_dim=27)},
        "hidden_size 328, 12 heads of 27",
    ),
    "an eps that is none": ({"edit": sizes(rms_norm_eps="x")}, "a llama of these settings cannot be built"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_base_is_refused(
    tiny_run: Recipe, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    keys, message = REFUSED[case]
    base = write_run(tmp_path / "st", **keys)
    with pytest.raises(UserError, match=message) as refused:
        build_decoder(tiny_run.decoder, data, str(base), 0)
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "trap-was-sprung").exists()


def test_damaged_files_are_refused(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    for name, content in {
        "checkpoints/final.ckpt": b"PK\x03\x04",
        "pert_onehot_map.pt": b"",
        "config.yaml": b"!!python/object/apply:os.getcwd []",
    }.items():
        write_run(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            build_decoder(tiny_run.decoder, data, str(tmp_path), 0)


# ------------------------------------------------------------------------------------------------------- the real one
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("state") is None, reason="needs arc-state: pip install arc-state")
def test_a_run_of_state_tx_train_is_a_base(tiny_run: Recipe, data: Dataset, tmp_path: Path) -> None:
    run = _train_st(tmp_path, sorted(data.all_targets)[:2])
    decoder, notes = started(tiny_run, data, run)
    assert f"vectors of 2 of {len(data.all_targets)} target genes" in notes[0]
    assert "basal_encoder, gene_decoder, project_out" in notes[1]
    state = torch.load(run / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]
    for name, value in decoder.backbone.state_dict().items():
        assert name == "embed_tokens.weight" or torch.equal(value, state[f"transformer_backbone.{name}"]), name
    settings = tiny_run.train.model_copy(update={"steps": 2})
    recipe = tiny_run.public(), tiny_run.fingerprint(), "fingerprint"
    phase = Phase("train", settings, tiny_run.decoder, str(run), 0, "tiny", *recipe)
    train_phase(phase, data, tmp_path / "work", tmp_path / "model", QUIET)
    saved = read_json(tmp_path / "model" / "config.json")
    assert saved["started_from"] == decoder.config.started_from
    assert saved["learned_targets"] == sorted(data.all_targets)[:2]


def _train_st(folder: Path, targets: list[str]) -> Path:
    """Two steps of `state tx train` on a screen of 240 random cells; the program is run, its code is not looked at."""
    rng, row = np.random.default_rng(0), np.arange(240)
    obs = pd.DataFrame(
        {
            "gene": pd.Categorical(np.array(["non-targeting", *targets, "OTHER"])[row % 4]),
            "cell_type": pd.Categorical(np.array(["x", "y"])[row // 4 % 2]),
            "gem_group": pd.Categorical(np.array(["1", "2"])[row // 8 % 2]),
        },
        index=[f"cell{i}" for i in row],
    )
    cells = anndata.AnnData(rng.poisson(1.0, (240, 12)).astype(np.float32), obs=obs)
    cells.obsm["X_hvg"] = np.log1p(cells.X[:, :8])
    (folder / "screen").mkdir()
    cells.write_h5ad(folder / "screen" / "s.h5ad")
    held_out = f'[fewshot."s.y"]\nval = ["{targets[0]}"]\ntest = ["{targets[1]}"]\n'
    (folder / "split.toml").write_text(
        f'[datasets]\ns = "{folder / "screen"}"\n[training]\ns = "train"\n[zeroshot]\n{held_out}'
    )
    backbone = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    backbone |= {"num_key_value_heads": 4, "head_dim": 8}
    keys = [f"model.kwargs.transformer_backbone_kwargs.{name}={size}" for name, size in backbone.items()]
    keys += f"""
        data.kwargs.toml_config_path={folder}/split.toml data.kwargs.embed_key=X_hvg data.kwargs.output_space=gene
        data.kwargs.pert_col=gene data.kwargs.cell_type_key=cell_type data.kwargs.batch_col=gem_group
        data.kwargs.control_pert=non-targeting data.kwargs.num_workers=0 data.kwargs.pin_memory=false
        training.max_steps=2 training.val_freq=1000000 training.ckpt_every_n_steps=1000000 training.batch_size=4
        model=state model.kwargs.cell_set_len=8 model.kwargs.hidden_dim=32 use_wandb=false output_dir={folder}
        name=st overwrite=true""".split()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"}
    command = [str(Path(sys.executable).with_name("state")), "tx", "train", *keys]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "st"
