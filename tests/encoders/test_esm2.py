"""ESM2: two loaders, one result, which is that of fair-esm's own forward; and what each refuses."""

import argparse
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from transformers import EsmConfig, EsmModel

from vcc_fm.encoders.proteins.esm2_fair_esm import load_fair_esm
from vcc_fm.encoders.proteins.esm2_transformers import compile_layers, load_transformers
from vcc_fm.encoders.proteins.token_batches import Cutting
from vcc_fm.ground.errors import UserError

RNG = np.random.default_rng(0)
TINY = (2, 32, 4)
SHAPES = {"8M": (6, 320, 20), "35M": (12, 480, 20)}


def protein(length: int, letters: str = "ACDEFGHIKLMNPQRSTVWY") -> str:
    return "".join(RNG.choice(list(letters), length))


# Unlike lengths share batches, so that padding occurs; two equal ones make a batch without.
PROTEINS = [protein(n) for n in (1, 2, 17, 30, 30, 31, 64, 90)] + [protein(25, "ACDXBUZO.-")]


def fair_model(layers: int, width: int, heads: int) -> ESM2:
    """Random weights on the scale of trained ones: no weight or bias is at a value that would hide its loss."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ESM2(layers, width, heads).eval()
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                torch.nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, 0.0, 0.1)
    return model


def write_pt(model: ESM2, path: Path, **changed: object) -> Path:
    """A checkpoint as fair-esm publishes them: prefixed names, settings in a Namespace, contact regression apart."""
    shape = {"encoder_layers": model.num_layers, "encoder_embed_dim": model.embed_dim}
    settings = {**shape, "encoder_attention_heads": model.attention_heads, "token_dropout": True, "arch": "esm2"}
    weights = {
        ("encoder." if name.startswith("lm_head") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head")
    }
    torch.save({"cfg": {"model": argparse.Namespace(**settings)}, "model": weights} | changed, path)
    return path


def write_hub_folder(model: ESM2, folder: Path) -> Path:
    """The same weights as the Hub holds them: the names and the configuration of EsmForMaskedLM."""
    names = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn.rot_emb": "attention.self.rotary_embeddings",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        head, _, rest = name.partition(".")
        if head == "layers":
            number, rest = rest.split(".", 1)
            part, _, kind = rest.rpartition(".")
            name = f"esm.encoder.layer.{number}.{names[part]}.{kind}"
        elif head == "embed_tokens":
            name = "esm.embeddings.word_embeddings.weight"
        elif head != "lm_head":
            name = f"esm.{'encoder.' if head == 'emb_layer_norm_after' else ''}{name}"
        weights[name] = tensor.clone()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["EsmForMaskedLM"],
        "model_type": "esm",
        "vocab_size": 33,
        "mask_token_id": 32,
        "pad_token_id": 1,
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.attention_heads,
        "intermediate_size": 4 * model.embed_dim,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 1026,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fair_vectors(model: ESM2, sequences: list[str], layer: int) -> np.ndarray:
    """fair-esm by its own batch converter and forward, one protein at a time, mean without start and end."""
    convert = model.alphabet.get_batch_converter()
    rows = []
    for sequence in sequences:
        _, _, tokens = convert([("", sequence)])
        with torch.no_grad():
            out = model(tokens, repr_layers=[layer])["representations"][layer]
        rows.append(out[0, 1 : len(sequence) + 1].mean(0).numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[ESM2, Path, Path]:
    """A tiny model, its Hub folder, and its original checkpoint; not to be changed."""
    folder, model = tmp_path_factory.mktemp("tiny"), fair_model(*TINY)
    return model, write_hub_folder(model, folder / "hub"), write_pt(model, folder / "esm2_tiny.pt")


@pytest.fixture
def hub(tiny, tmp_path) -> Path:
    """A copy of the tiny Hub folder, to be spoiled."""
    return Path(shutil.copytree(tiny[1], tmp_path / "copy"))


# ------------------------------------------------------------------------------------------------------------- parity
@pytest.mark.parametrize(
    "shape", [pytest.param(one, marks=pytest.mark.slow) if one == "35M" else one for one in SHAPES]
)
def test_both_loaders_give_fair_esms_own_vectors_padded_or_not(shape, tmp_path):
    model = fair_model(*SHAPES[shape])
    folder, file = write_hub_folder(model, tmp_path / "hub"), write_pt(model, tmp_path / "esm2.pt")
    truth = fair_vectors(model, PROTEINS, model.num_layers)
    scale = np.abs(truth).max()
    assert scale > 0.1, "vectors near zero would prove nothing"
    for load in (load_transformers, load_fair_esm):
        source = str(folder if load is load_transformers else file)
        together = load(source)
        assert any(s.padded_tokens > s.tokens for s in together.plan(PROTEINS)), "no padding to be tested"
        np.testing.assert_allclose(together.encode(PROTEINS), truth, atol=1e-5)
        alone = np.concatenate([together.encode([sequence]) for sequence in PROTEINS])
        np.testing.assert_allclose(alone, truth, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_layer_is_fair_esms_of_that_number(tiny, layer):
    # Layer 0 is the token embedding after the token-dropout rescaling, the last one comes after the final norm.
    model, folder, file = tiny
    truth = fair_vectors(model, PROTEINS, layer)
    np.testing.assert_allclose(load_transformers(str(folder), layer=layer).encode(PROTEINS), truth, atol=1e-5)
    np.testing.assert_allclose(load_fair_esm(str(file), layer=layer).encode(PROTEINS), truth, atol=1e-5)


def test_token_dropout_scales_the_embedding_by_what_was_masked_in_training(tiny):
    model, folder, file = tiny
    token = model.embed_tokens.weight[model.alphabet.get_idx("M")].detach().numpy() * (1 - 0.15 * 0.8)
    for encoder in (load_transformers(str(folder), layer=0), load_fair_esm(str(file), layer=0)):
        np.testing.assert_allclose(encoder.encode(["MMM"])[0], token, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["transformers", "fair-esm"])
def test_bfloat16_points_where_float32_does(loader, tmp_path):
    # Long enough for positions that bfloat16 cannot count (257 and beyond), and attention sharp enough to heed them:
    # that of random weights is nearly even.
    model = fair_model(*SHAPES["8M"])
    with torch.no_grad():
        for block in model.layers:
            block.self_attn.q_proj.weight *= 3
            block.self_attn.k_proj.weight *= 3
    proteins = [protein(n) for n in (60, 600)]
    if loader == "transformers":
        load, source = load_transformers, write_hub_folder(model, tmp_path / "hub")
    else:
        load, source = load_fair_esm, write_pt(model, tmp_path / "esm2.pt")
    exact = fair_vectors(model, proteins, model.num_layers)
    rounded = load(str(source), dtype="bfloat16").encode(proteins)
    cosine = (exact * rounded).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosine.min() >= 0.9999
    assert np.abs(exact - rounded).max() > 1e-4, "that was float32"


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_layers_are_compiled_once_for_batches_of_any_shape(tiny, backend, monkeypatch):
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **how: compile_(layer, backend=backend, **how))
    plain, layers = (EsmModel.from_pretrained(tiny[1], add_pooling_layer=False).eval() for _ in range(2))
    torch._dynamo.reset()
    counters["stats"].clear()
    compile_layers(layers)
    for proteins, tokens, padding in (
        (3, 12, 0),
        (5, 40, 0),
        (1, 9, 0),
        (4, 17, 3),
        (2, 33, 1),
        (7, 64, 9),
        (1, 80, 0),
    ):
        ids = torch.randint(4, 24, (proteins, tokens))
        mask = torch.ones_like(ids)
        mask[0, tokens - padding :] = 0
        given = {"input_ids": ids, "attention_mask": mask if padding else None}
        with torch.inference_mode():
            torch.testing.assert_close(layers(**given)[0], plain(**given)[0], rtol=1e-5, atol=1e-5)
    # With a mask and without, a batch of one and of several; not one for each shape.
    assert 1 <= counters["stats"]["unique_graphs"] <= 4


def test_without_a_compiler_the_key_is_named(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError, match=r"embed\.proteins\.compile: .* install gcc, or set embed\.proteins\.compile=false"
    ):
        compile_layers(EsmModel(EsmConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=4, vocab_size=33)))


def test_rotation_frequencies_are_the_checkpoints_own_in_float32(tmp_path):
    # The large checkpoints were saved in half precision, and their frequencies with them.
    model = fair_model(*TINY).half().float()
    folder, file = write_hub_folder(model, tmp_path / "hub"), write_pt(model.half(), tmp_path / "esm2.pt")
    proteins = [protein(400)]
    truth = fair_vectors(model.float(), proteins, 2)
    np.testing.assert_allclose(load_transformers(str(folder)).encode(proteins), truth, atol=1e-5)
    np.testing.assert_allclose(load_fair_esm(str(file)).encode(proteins), truth, atol=1e-5)
    exact = load_transformers(str(write_hub_folder(fair_model(*TINY), tmp_path / "exact"))).encode(proteins)
    assert np.abs(exact - truth).max() > 1e-5, "frequencies made anew would have passed"


# ------------------------------------------------------------------------------------------- long sequences and shards
@pytest.mark.slow
def test_a_titin_sized_protein_is_the_mean_over_windows_then_residues(tiny):
    model, folder, _ = tiny
    window, overlap, length = 700, 150, 35_000
    titin = protein(length)
    sums, times = np.zeros((length, TINY[1])), np.zeros(length)
    steps = int(np.ceil((length - window) / (window - overlap)))
    convert = model.alphabet.get_batch_converter()
    for k in range(steps + 1):
        start = k * (length - window) // steps
        _, _, tokens = convert([("", titin[start : start + window])])
        with torch.no_grad():
            sums[start : start + window] += model(tokens, repr_layers=[2])["representations"][2][0, 1:-1].numpy()
        times[start : start + window] += 1
    assert times.min() == 1
    assert times.max() == 2
    truth = (sums / times[:, None]).mean(0)
    encoder = load_transformers(str(folder), cutting=Cutting(window, overlap, 4 * (window + 2)))
    np.testing.assert_allclose(encoder.encode([PROTEINS[3], titin])[1], truth, atol=1e-5)
    assert np.abs(encoder.encode([titin[:-1]])[0] - truth).max() > 1e-6, "the last residue has no say"


def test_shards_in_any_order_are_the_whole_bit_for_bit(tiny):
    encoder = load_transformers(str(tiny[1]), cutting=Cutting(100, 20, 300, 400))
    sequences = [protein(int(n)) for n in RNG.integers(1, 350, 60)]
    shards = encoder.plan(sequences)
    assert len(shards) > 5
    vectors = {}
    for shard in [shards[i] for i in RNG.permutation(len(shards))]:
        rows = encoder.encode_shard(shard)
        assert rows.dtype == np.float32
        vectors |= dict(zip(shard.sequences, rows, strict=True))
    whole = encoder.encode(sequences)
    assert whole.shape == (60, encoder.width)
    assert np.array_equal(np.stack([vectors[sequence] for sequence in sequences]), whole)
    # Order and repetition change no bit either.
    assert np.array_equal(encoder.encode([*sequences[::-1], sequences[0]]), whole[[*range(59, -1, -1), 0]])


def test_progress_counts_residues_up_to_the_shards(tiny):
    encoder = load_transformers(str(tiny[1]), cutting=Cutting(100, 20, 300))
    (shard,) = encoder.plan([protein(n) for n in (5, 80, 99, 100, 260)])
    told: list[int] = []
    encoder.encode_shard(shard, told.append)
    assert told == sorted(set(told))
    assert len(told) == len(shard.bounds) - 1 > 1
    assert told[-1] == shard.residues


def test_no_sequences_are_no_rows(tiny):
    assert load_transformers(str(tiny[1])).encode([]).shape == (0, TINY[1])


# --------------------------------------------------------------------------------------------------------- description
def test_describe_names_checkpoint_and_every_parameter(tiny):
    _, folder, file = tiny
    encoders = [load_transformers(str(folder), layer=1, cutting=Cutting(window=500)), load_fair_esm(str(file))]
    described = [encoder.describe() for encoder in encoders]
    assert json.loads(json.dumps(described)) == described
    assert described[0]["checkpoint"]["loader"] == "transformers"
    assert set(described[0]["checkpoint"]["sha256"]) == {"config.json", "model.safetensors"}
    assert len(described[1]["checkpoint"]["sha256"]) == 64
    assert (described[0]["parameters"]["layer"], described[1]["parameters"]["layer"]) == (1, 2)
    assert (described[0]["parameters"]["window"], described[1]["parameters"]["window"]) == (500, 1022)
    assert {"overlap", "tokens_per_batch", "tokens_per_shard", "dtype", "device"} <= set(described[0]["parameters"])
    assert str(folder.parent) not in json.dumps(described), "a store must not depend on where the weights lay"


def test_a_hub_id_is_recorded_with_its_commit(tiny, tmp_path, monkeypatch):
    # The Hub's own cache layout, and no network.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--facebook--esm2_tiny"
    shutil.copytree(tiny[1], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = load_transformers("facebook/esm2_tiny")
    assert encoder.describe()["checkpoint"] == {
        "loader": "transformers",
        "name": "facebook/esm2_tiny",
        "revision": commit,
    }
    with pytest.raises(UserError, match=r"hf://facebook/esm2_none@v2: not in the local cache"):
        load_transformers("facebook/esm2_none", revision="v2")


def test_weights_without_safetensors_are_read(tiny, hub):
    torch.save(load_file(hub / "model.safetensors"), hub / "pytorch_model.bin")
    (hub / "model.safetensors").unlink()
    encoder = load_transformers(str(hub))
    assert np.array_equal(encoder.encode(PROTEINS), load_transformers(str(tiny[1])).encode(PROTEINS))
    assert "pytorch_model.bin" in encoder.describe()["checkpoint"]["sha256"]


def test_a_model_spread_by_device_map_gives_the_same(tiny):
    spread = load_transformers(str(tiny[1]), device="auto", dtype="float32")
    np.testing.assert_allclose(spread.encode(PROTEINS), load_transformers(str(tiny[1])).encode(PROTEINS), atol=1e-5)


# ------------------------------------------------------------------------------------------------ what a user can mend
@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("MK*L", r"protein sequence 2, 'MK\*L': ESM2 has no token for '\*' \(position 3\)"),
        ("mk1", "ESM2 has no token for '1' \\(position 3\\)"),
        ("MKÄ", "ESM2 has no token for 'Ä'"),
        ("MK→", "ESM2 has no token for '→'"),
        ("", "protein sequence 2, '': no standard amino acid"),
        ("XXJ-", "protein sequence 2, 'XXJ-': no standard amino acid; correct it in the FASTA"),
    ],
)
def test_a_sequence_that_is_no_protein_is_refused(tiny, sequence, message):
    with pytest.raises(UserError, match=message):
        load_transformers(str(tiny[1])).encode(["MKV", sequence])


def test_lower_case_and_j_are_read_as_documented(tiny):
    encoder = load_transformers(str(tiny[1]))
    assert np.array_equal(encoder.encode(["mkvjl"]), encoder.encode(["MKVXL"]))


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_out_of_range_is_refused(tiny, layer):
    _, folder, file = tiny
    message = f"embed.proteins.layer={layer}: .* has 2 layers; choose 0 .* to 2"
    with pytest.raises(UserError, match=message):
        load_transformers(str(folder), layer=layer)
    with pytest.raises(UserError, match=message):
        load_fair_esm(str(file), layer=layer)


def test_a_wrong_dtype_is_refused(tiny):
    _, folder, file = tiny
    message = "embed.proteins.precision: choose auto, float32 or bfloat16, found 'float16'"
    with pytest.raises(UserError, match=message):
        load_transformers(str(folder), dtype="float16")
    with pytest.raises(UserError, match=message):
        load_fair_esm(str(file), dtype="float16")


def test_an_original_checkpoint_is_not_spread(tiny):
    with pytest.raises(UserError, match="spread: original checkpoints run on one device"):
        load_fair_esm(str(tiny[2]), device="auto")


class TestHubFolder:
    def change(self, folder: Path, **settings: object) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"position_embedding_type": "absolute"}, "is not of ESM2: position_embedding_type is 'absolute'"),
            ({"emb_layer_norm_before": True}, "is not of ESM2: emb_layer_norm_before is True"),
            ({"model_type": "bert"}, "is not of ESM2: model_type is 'bert', not 'esm'"),
            ({"vocab_size": 64}, "is not of ESM2: vocab_size is 64, not 33"),
            ({"is_folding_model": True}, "is of ESMFold"),
            (
                {"hidden_size": 64},
                r"embeddings.word_embeddings.weight has shape \[33, 32\], config.json asks for \[33, 64\]",
            ),
            ({"num_hidden_layers": 3}, "16 weights are missing, the first is encoder.layer.2"),
            (
                {"num_hidden_layers": 1},
                "16 weights have no place in ESM2 as config.json describes it: encoder.layer.1",
            ),
        ],
    )
    def test_a_configuration_of_another_model_or_shape_is_refused(self, hub, settings, message):
        self.change(hub, **settings)
        with pytest.raises(UserError, match=message) as error:
            load_transformers(str(hub))
        assert len(str(error.value).splitlines()) == 1

    def test_weights_cut_short_are_refused(self, hub):
        file = hub / "model.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(UserError, match="is not readable as weights of ESM2: "):
            load_transformers(str(hub))

    def test_missing_weights_are_refused(self, hub):
        weights = load_file(hub / "model.safetensors")
        del weights["esm.encoder.layer.1.intermediate.dense.bias"]
        save_file(weights, hub / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            UserError, match=r"1 weights are missing, the first is encoder\.layer\.1\.intermediate\.dense\.bias"
        ):
            load_transformers(str(hub))

    def test_a_folder_without_weights_or_configuration_is_refused(self, hub):
        (hub / "model.safetensors").unlink()
        with pytest.raises(UserError, match="is not readable as weights of ESM2: "):
            load_transformers(str(hub))
        (hub / "config.json").write_text("{")
        with pytest.raises(UserError, match=r"config\.json is not readable as a configuration: "):
            load_transformers(str(hub))
        (hub / "config.json").unlink()
        with pytest.raises(UserError, match=r"no config\.json"):
            load_transformers(str(hub))

    def test_a_folder_that_is_not_there_is_no_hub_id(self, tmp_path):
        with pytest.raises(UserError, match="no such folder, and no Hub id"):
            load_transformers(str(tmp_path / "none"))

    def test_a_folder_has_no_revision(self, tiny):
        with pytest.raises(UserError, match=r"embed\.proteins\.revision=main: .* is a folder here"):
            load_transformers(str(tiny[1]), revision="main")


class Harmful:
    def __reduce__(self):
        return (os.system, ("exit 1",))


class TestOriginalCheckpoint:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"args": argparse.Namespace(arch="roberta_large"), "model": {}}, "architecture 'roberta_large'"),
            ({"args": argparse.Namespace(arch="msa_transformer"), "model": {}}, "architecture 'msa_transformer'"),
            ({"model": {"contact_head.regression.weight": torch.ones(1)}}, "found a dictionary with model"),
            ([1, 2], "not ESM2: found a list"),
            ({"cfg": {"model": argparse.Namespace(encoder_layers=2)}, "model": {}}, "settings lack encoder_attention"),
            ({"x": Harmful()}, "it holds more than tensors and settings"),
        ],
    )
    def test_another_file_is_refused(self, tmp_path, content, message):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(UserError, match=message):
            load_fair_esm(str(tmp_path / "x.pt"))

    def test_a_file_cut_short_empty_or_missing_is_refused(self, tiny, tmp_path):
        file = Path(shutil.copy(tiny[2], tmp_path / "x.pt"))
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(UserError, match="is not readable as a checkpoint of torch: "):
            load_fair_esm(str(file))
        file.write_bytes(b"")
        with pytest.raises(UserError, match="is not readable as a checkpoint of torch: "):
            load_fair_esm(str(file))
        file.write_bytes(pickle.dumps({"x": Harmful()}, protocol=2))
        with pytest.raises(UserError, match="it holds more than tensors and settings, or is no checkpoint"):
            load_fair_esm(str(file))
        with pytest.raises(UserError, match="no such file"):
            load_fair_esm(str(tmp_path / "none.pt"))

    def test_weights_that_do_not_fit_the_settings_are_refused(self, tmp_path):
        model = fair_model(*TINY)
        shape = {"encoder_embed_dim": 32, "encoder_attention_heads": 4, "token_dropout": True}
        for layers, message in ((3, "weights are missing, the first is layers.2"), (1, "have no place in ESM2")):
            settings = {"model": argparse.Namespace(encoder_layers=layers, **shape)}
            file = write_pt(model, tmp_path / "x.pt", cfg=settings)
            with pytest.raises(UserError, match=message):
                load_fair_esm(str(file))
        settings = {"model": argparse.Namespace(encoder_layers=2, **(shape | {"encoder_embed_dim": 64}))}
        file = write_pt(model, tmp_path / "x.pt", cfg=settings)
        with pytest.raises(UserError, match=r"has shape \[33, 32\], its settings ask for \[33, 64\]"):
            load_fair_esm(str(file))
