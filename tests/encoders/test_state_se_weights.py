"""A checkpoint of SE is read as it is, and refused where it is not whole or its parts do not belong together."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from state_se_checkpoints import (
    NEEDS_STATE,
    TINY,
    protein_embeddings,
    random_names,
    random_tensors,
    write_arc_checkpoint,
    write_folder,
)
from torch import Tensor

from vcc_fm.encoders.cells import state_se_weights
from vcc_fm.encoders.cells.state_se_geometry import TIED, SeGeometry
from vcc_fm.encoders.cells.state_se_model import build_state_se
from vcc_fm.encoders.cells.state_se_weights import SE_600M_REVISION, load_state_se
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import sha256_file
from vcc_fm.ground.hub import Address

TENSORS, NAMES = random_tensors(TINY), random_names(TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "SE-tiny", TENSORS, NAMES, TINY.heads)


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Write the weights again; a double underscore in a key stands for a dot, and None leaves a tensor out."""
    changed: dict[str, Tensor | None] = {
        **TENSORS,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    save_file({key: value for key, value in changed.items() if value is not None}, folder / "model.safetensors")


def write_lightning(file: Path, **more: Any) -> Path:
    torch.save({"state_dict": TENSORS, **more}, file)
    return file


def test_folder_is_read(folder: Path) -> None:
    checkpoint = load_state_se(str(folder))
    assert checkpoint.geometry == TINY
    assert checkpoint.names == NAMES
    assert checkpoint.tensors.keys() == TENSORS.keys() - TIED.keys()
    assert all(torch.equal(tensor, TENSORS[key]) for key, tensor in checkpoint.tensors.items())
    assert checkpoint.describe() == {
        "name": "SE-tiny",
        "heads": 4,
        "sha256": {
            name: sha256_file(folder / name) for name in ("model.safetensors", "config.yaml", "protein_embeddings.pt")
        },
    }


def test_tied_copies_may_be_absent_and_a_file_be_named(folder: Path) -> None:
    untied = {key: tensor for key, tensor in TENSORS.items() if key not in TIED}
    save_file(untied, folder / "epoch4.safetensors")
    checkpoint = load_state_se(str(folder / "epoch4.safetensors"))
    assert checkpoint.geometry == TINY
    assert checkpoint.name == "epoch4.safetensors"


def test_heads_given_go_before_the_configuration(folder: Path) -> None:
    assert load_state_se(str(folder), heads=8).geometry.heads == 8
    (folder / "config.yaml").unlink()
    checkpoint = load_state_se(str(folder), heads=2)
    assert checkpoint.geometry.heads == 2
    assert [file.name for file in checkpoint.files] == ["model.safetensors", "protein_embeddings.pt"]


def test_reduced_precision_is_compared_in_its_own(folder: Path) -> None:
    save_file({key: tensor.bfloat16() for key, tensor in TENSORS.items()}, folder / "model.safetensors")
    checkpoint = load_state_se(str(folder))
    network = build_state_se(checkpoint.geometry, checkpoint.tensors)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_lightning_checkpoint_is_read(tmp_path: Path) -> None:
    without = {key: tensor for key, tensor in TENSORS.items() if key != "pe_embedding.weight"}
    file = tmp_path / "epoch=4.ckpt"
    torch.save(
        {
            "state_dict": without,
            "protein_embeds_dict": protein_embeddings(TENSORS, NAMES),
            "hyper_parameters": {"nhead": 4},
        },
        file,
    )
    for path in (file, tmp_path):
        checkpoint = load_state_se(str(path))
        assert checkpoint.geometry == TINY
        assert checkpoint.names == NAMES
        assert torch.equal(checkpoint.tensors["pe_embedding.weight"], TENSORS["pe_embedding.weight"])
        assert list(checkpoint.files) == [file]


def test_lightning_checkpoint_takes_symbols_and_heads_from_beside(folder: Path) -> None:
    write_lightning(folder / "last.ckpt")
    (folder / "model.safetensors").unlink()
    checkpoint = load_state_se(str(folder))
    assert checkpoint.names == NAMES
    assert checkpoint.geometry == TINY


def test_arc_state_checkpoint_is_read(tmp_path: Path) -> None:
    pytest.importorskip("state", reason=NEEDS_STATE)
    write_arc_checkpoint(tmp_path / "arc.ckpt", TENSORS, NAMES, TINY, 64)
    assert load_state_se(str(tmp_path)).geometry == TINY


@pytest.mark.parametrize(
    ("hub_id", "revision", "asked"),
    [
        ("arcinstitute/SE-600M", None, SE_600M_REVISION),
        ("hf://arcinstitute/SE-600M", None, SE_600M_REVISION),
        ("arcinstitute/SE-600M", "main", "main"),
        ("arcinstitute/SE-600M@v2", None, "v2"),
        ("a/b", None, "main"),
    ],
)
def test_hub_revision_is_pinned_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub_id: str, revision: str | None, asked: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot = write_folder(tmp_path / "0c0ffee", TENSORS, NAMES, TINY.heads)
    calls: list[tuple[Address, list[str]]] = []

    def pull(address: Address, patterns: list[str]) -> tuple[Path, str]:
        calls.append((address, patterns))
        return snapshot, snapshot.name

    monkeypatch.setattr(state_se_weights, "pull", pull)
    described = load_state_se(hub_id, revision).describe()
    name = hub_id.removeprefix("hf://").partition("@")[0]
    assert described["name"] == name
    assert described["revision"] == "0c0ffee"
    [(address, patterns)] = calls
    assert (address.repo, address.revision) == (name, asked)
    assert not any("ckpt" in pattern or pattern == "*.safetensors" for pattern in patterns)


def test_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=r"hf://a/b@v1: not transferred \(no route\); check the address"):
        load_state_se("a/b", "v1")


def reorder(folder: Path) -> None:
    vectors = protein_embeddings(TENSORS, NAMES)
    torch.save({name: vectors[name] for name in sorted(NAMES)}, folder / "protein_embeddings.pt")


def vectors_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        torch.save(protein_embeddings(TENSORS, NAMES) | changes, folder / "protein_embeddings.pt")

    return change


def saved(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(value, folder / name)


def text(name: str, value: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(value)

    return write


def gone(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def shorten(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return shorten


def weights(**changes: Tensor | None) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, **changes)


def settings(**model: Any) -> Callable[[Path], None]:
    return text("config.yaml", yaml.safe_dump({"model": {"nhead": 4, **model}}))


def only_checkpoint(**content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        gone("model.safetensors")(folder)
        torch.save(content, folder / "last.ckpt")

    return write


def spoilt(value: float) -> Tensor:
    bias = TENSORS["decoder.1.bias"].clone()
    bias[3] = value
    return bias


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (gone("model.safetensors"), "no model.safetensors; give a folder"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "epoch4.safetensors"),
            "no model.safetensors, but epoch4.safetensors; give the path of one file",
        ),
        (cut("model.safetensors"), "model.safetensors is not readable as safetensors: "),
        (text("model.safetensors", ""), "model.safetensors is not readable as safetensors: "),
        (weights(decoder__1__bias=None), "1 tensors are missing, the first is decoder.1.bias"),
        (weights(decoder__1__bias=torch.zeros(31)), r"decoder.1.bias has shape \[31\], .* \[32\]"),
        (weights(decoder__2__bias=torch.zeros(2)), "no place in SE, the first is decoder.2.bias"),
        (weights(decoder__1__bias=spoilt(torch.nan)), "decoder.1.bias has NaN or infinite values"),
        (weights(decoder__1__bias=spoilt(-torch.inf)), "decoder.1.bias has NaN or infinite values"),
        (weights(decoder__1__bias=torch.zeros(32, dtype=torch.int8)), "decoder.1.bias is int8, wanted floating point"),
        (
            weights(gene_embedding_layer__0__bias=torch.zeros(64)),
            "gene_embedding_layer.0.bias is not equal to encoder.0.bias",
        ),
        (gone("protein_embeddings.pt"), "protein_embeddings.pt: no such file; it tells which gene is which row"),
        (cut("protein_embeddings.pt"), "protein_embeddings.pt: cut short, or not written by torch.save"),
        (text("protein_embeddings.pt", "hello"), "protein_embeddings.pt: cut short, or not written by torch.save"),
        (
            vectors_with(x=argparse.Namespace()),
            "holds argparse.Namespace, which only an unsafe load can read",
        ),
        (saved("protein_embeddings.pt", torch.zeros(2, 2)), "symbol -> vector is expected, found Tensor"),
        (saved("protein_embeddings.pt", {}), "is expected, found an empty dictionary"),
        (saved("protein_embeddings.pt", {1: torch.zeros(2)}), r"a key is 1 \(int\) where a symbol is expected"),
        (vectors_with(GENE3=torch.zeros(1, 48)), "GENE3 is float32 of shape .* where a 1-D float vector is expected"),
        (vectors_with(GENE3=torch.zeros(47)), "one length above 0 are expected, found 48 for .* and 47 for GENE3"),
        (
            vectors_with(MORE=torch.zeros(48)),
            r"151 genes with 48 values each, .* shape \[150, 48\]; .* two checkpoints",
        ),
        (vectors_with(GENE3=torch.zeros(48)), "1 of 150 vectors are not the rows of .*, the first is of GENE3"),
        (reorder, r"1[45]\d of 150 vectors are not the rows of pe_embedding.weight"),
        (gone("config.yaml"), r"config.yaml is not there; set embed.cells.heads \(16 for SE-600M\)"),
        (text("config.yaml", "dataset: {}"), "config.yaml has model.nhead None; set embed.cells.heads"),
        (text("config.yaml", ""), "config.yaml has model.nhead None; set embed.cells.heads"),
        (text("config.yaml", "model: [1"), "config.yaml is not readable as plain YAML: "),
        (text("config.yaml", "a: !!python/name:os.system"), "config.yaml is not readable as plain YAML: "),
        (settings(nhead="${x}"), r"config.yaml has model.nhead '\$\{x\}'; set embed.cells.heads"),
        (settings(nhead=True), "config.yaml has model.nhead True; set embed.cells.heads"),
        (settings(nhead=5), "5 attention heads do not divide its width of 64"),
        (settings(emsize=65), "config.yaml: model.emsize is 65, model.safetensors has 64"),
        (settings(d_hid=64), "model.d_hid is 64, model.safetensors has 96"),
        (settings(nlayers=4), "model.nlayers is 4, model.safetensors has 3"),
        (settings(output_dim=64), "model.output_dim is 64, model.safetensors has 32"),
        (
            only_checkpoint(state_dict=TENSORS, config=argparse.Namespace()),
            "argparse.Namespace.* use model.safetensors",
        ),
        (only_checkpoint(weights=TENSORS), "last.ckpt: no Lightning checkpoint"),
        (only_checkpoint(state_dict={"a": 1}), "last.ckpt: no Lightning checkpoint"),
    ],
)
def test_unfit_folder_is_refused(folder: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as told:
        load_state_se(str(folder))
    assert len(str(told.value).splitlines()) == 1


def test_swapped_vectors_are_refused(folder: Path) -> None:
    vectors = protein_embeddings(TENSORS, NAMES)
    first, second = NAMES[:2]
    vectors[first], vectors[second] = vectors[second], vectors[first]
    torch.save(vectors, folder / "protein_embeddings.pt")
    with pytest.raises(UserError, match=f"2 of 150 vectors are not the rows of .*, the first is of {first};"):
        load_state_se(str(folder))


def test_two_lightning_checkpoints_are_not_chosen_between(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("b.ckpt", "a.ckpt"):
        write_lightning(folder / name)
    with pytest.raises(UserError, match=r"but a.ckpt, b.ckpt; give the path of one file"):
        load_state_se(str(folder))


def test_paths_that_are_none_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"x.ckpt: no such file"):
        load_state_se(str(folder / "x.ckpt"))
    with pytest.raises(UserError, match=r"no such folder, and no Hub id \(OWNER/NAME\)"):
        load_state_se(str(folder / "x"))
    with pytest.raises(UserError, match=r"config.yaml: not a .safetensors or .ckpt file, nor a folder"):
        load_state_se(str(folder / "config.yaml"))
    with pytest.raises(UserError, match=r"embed.cells.revision=main: .* is here and not on the Hub"):
        load_state_se(str(folder), "main")


@pytest.fixture
def passing_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not outlive the test, as pytest's own would."""
    with TemporaryDirectory(dir=tmp_path) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_se_600m_in_full_size(passing_folder: Path) -> None:
    geometry = SeGeometry(2048, 2048, 16, 16, 2048, 5120, 19790, 14420)
    tensors, names = random_tensors(geometry), random_names(geometry)
    assert len(tensors) == 238
    assert sum(tensor.numel() for tensor in tensors.values()) == 715_062_442
    write_folder(passing_folder, tensors, names, geometry.heads)
    assert (passing_folder / "model.safetensors").stat().st_size > 4 * 715_062_442
    del tensors

    checkpoint = load_state_se(str(passing_folder))
    assert checkpoint.geometry == geometry
    assert checkpoint.names == names
    genes = torch.randperm(geometry.genes, generator=torch.Generator().manual_seed(0))[:2047]
    network = build_state_se(geometry, checkpoint.tensors, genes)
    # Nothing is read into memory twice.
    assert all(tensor.data_ptr() == checkpoint.tensors[key].data_ptr() for key, tensor in network.state_dict().items())

    values = torch.rand(2, 63, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(126).reshape(2, 63)
    cell, dataset = network(ids, 100 * values / values.sum(1, keepdim=True), torch.zeros(2))
    assert cell.shape == (2, 2048)
    assert dataset.shape == (2, 10)
    torch.testing.assert_close(cell.norm(dim=1), torch.ones(2))
    assert dataset.isfinite().all()
    assert (cell[0] - cell[1]).abs().max() > 1e-4

    values = torch.rand(1, 2047, generator=torch.Generator().manual_seed(2))
    cell, dataset = network(torch.arange(2047)[None], 100 * values / values.sum(), torch.zeros(1))
    torch.testing.assert_close(cell.norm(dim=1), torch.ones(1))
    assert dataset.isfinite().all()
