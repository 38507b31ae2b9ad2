"""Shared models of people who mean harm, each consistent with its own checksums, and what is made of them: nothing."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save_file

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_sealed, write_sealed
from vcc_fm.hub.bundle import MANIFEST, Manifest, _seal, read_bundle
from vcc_fm.hub.card import Run, model_card
from vcc_fm.hub.licences import Ancestor
from vcc_fm.pipeline import PerturbationPipeline
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.share import share_run


@pytest.fixture(scope="module")
def good(finished: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    share_run(finished.run_folder, folder)
    return folder


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def seal(folder: Path) -> None:
    """Make the checksums fit again, as its author would."""
    manifest = Manifest.model_validate(read_sealed(folder / MANIFEST, ""))
    (folder / MANIFEST).unlink()
    _seal(folder, manifest, [path for path in folder.rglob("*") if path.is_file()])


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def change_manifest(folder: Path, **keys: Any) -> None:
    write_sealed(folder / MANIFEST, read_sealed(folder / MANIFEST, "") | keys)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("trap-was-sprung",))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, folder / "pytorch_model.bin")


def names_code(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": "mine.Mine"})


def shorter_axis(folder: Path) -> None:
    change(folder / "config.json", genes=json.loads((folder / "config.json").read_text())["genes"][:-1])


def longer_axis_everywhere(folder: Path) -> None:
    """The decoder is consistent, but the responses are of another axis."""
    genes = [*json.loads((folder / "config.json").read_text())["genes"], "MADEUP"]
    change(folder / "config.json", genes=genes)
    tensors = load_file(folder / "model.safetensors")
    grown = {
        name: torch.cat([value, value[-1:]]) if value.ndim and value.shape[0] == len(genes) - 1 else value
        for name, value in tensors.items()
    }
    save_file(grown, folder / "model.safetensors", {"format": "pt"})


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["head.log_dispersion"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"more": torch.zeros(3)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.log_dispersion"] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.log_dispersion"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def header_that_lies(name: str, claimed: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        header = {"ratio": {"dtype": "F32", "shape": [claimed // 4], "data_offsets": [0, claimed]}}
        text = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 1000)

    return spoil


def columns_off_the_axis(folder: Path) -> None:
    path = folder / "cell-encoder/encoder.safetensors"
    tensors = load_file(path)
    tensors["columns"][-1] = 10**9
    save_file(tensors, path)


def large_backbone(folder: Path) -> None:
    backbone = json.loads((folder / "config.json").read_text())["backbone"]
    change(folder / "config.json", backbone=backbone | {"vocab_size": 10**12})


def many_layers(folder: Path) -> None:
    backbone = json.loads((folder / "config.json").read_text())["backbone"]
    change(folder / "config.json", backbone=backbone | {"num_hidden_layers": 10**9})


def index_that_leads_out(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, r"pytorch_model.bin: may hold code"),
        (names_code, r"names code to load it with"),
        (shorter_axis, r"in another shape \d+ tensors"),
        (longer_axis_everywhere, r"where \d+ groups on 51 genes are expected"),
        (without_a_tensor, r"lack 1 tensors, such as head.log_dispersion"),
        (with_a_tensor, r"have in vain 1 tensors, such as more"),
        (of_another_shape, r"in another shape 1 tensors, such as head.log_dispersion \(\[7\] for \[50\]\)"),
        (not_finite, r"1 tensors are not finite"),
        (header_that_lies("model.safetensors", 10**10), r"is not readable as safetensors"),
        (header_that_lies("responses.safetensors", 10**10), r"is not readable as responses"),
        (header_that_lies("cell-encoder/encoder.safetensors", 10**10), r"is not readable as"),
        (columns_off_the_axis, r"was not fitted with 4 components on 50 genes"),
        (large_backbone, r"in another shape 1 tensors, such as backbone.embed_tokens.weight"),
        (many_layers, r"asks for 1000000000 layers"),
        (index_that_leads_out, r"safetensors only"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_hostile_model_is_refused(
    model: Path, spoil: Callable[[Path], None], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(model)
    seal(model)
    with pytest.raises(UserError, match=message) as caught:
        use(model)
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "trap-was-sprung").exists()


def use(model: Path) -> None:
    """Load all of it and predict."""
    pipeline = PerturbationPipeline.from_pretrained(model)
    pipeline(pipeline.control_cells("gamma"), pipeline.perturbations[:1], cells=5)


def test_the_copy_itself_is_fine(model: Path) -> None:
    seal(model)
    use(model)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../outside", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        ("a/../../outside", "leads out of the folder"),
        ("a\\..\\outside", "leads out of the folder"),
        ("./config.json", "leads out of the folder"),
        ("gone.safetensors", "missing"),
    ],
)
def test_a_path_cannot_leave_the_folder(model: Path, path: str, message: str) -> None:
    files = read_sealed(model / MANIFEST, "")["files"]
    change_manifest(model, files=files | {path: {"bytes": 3, "sha256": "0" * 64}})
    with pytest.raises(UserError, match=message):
        read_bundle(model)


def test_a_link_that_leads_out_is_refused(model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    shutil.move(model / "config.json", outside)
    (model / "config.json").symlink_to(outside)
    with pytest.raises(UserError, match=r"config.json: is a link that leads out of the folder"):
        read_bundle(model)
    (model / "config.json").unlink()
    shutil.move(model / "proteins", tmp_path / "proteins")
    (model / "proteins").symlink_to(tmp_path / "proteins")
    shutil.copy(outside, model / "config.json")
    with pytest.raises(UserError, match=r"is a link that leads out of the folder"):
        read_bundle(model)


def test_sizes_and_contents_are_compared_first(model: Path) -> None:
    files = read_sealed(model / MANIFEST, "")["files"]
    change_manifest(model, files=files | {"config.json": {"bytes": 10**10, "sha256": "0" * 64}})
    with pytest.raises(UserError, match=r"config.json: [\d,]+ bytes where vcc_fm.json says 10,000,000,000"):
        read_bundle(model)
    change_manifest(model, files=files)
    content = bytearray((model / "responses.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "responses.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"responses.safetensors: its content is not what vcc_fm.json says"):
        read_bundle(model)


def test_a_file_that_is_not_listed_is_not_opened(model: Path) -> None:
    save_file({"a": torch.zeros(1)}, model / "model-00001-of-00001.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00001.safetensors is not among the files"):
        read_bundle(model)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"format": 2}, "format 2, this program reads 1"),
        ({"effect_scale": 1e9}, "effect_scale: Input should be less than or equal to 100"),
        ({"separator": ""}, "separator"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"cell_encoder": {"encoder": "theirs"}}, "cell encoder 'theirs' is none of this installation"),
        ({"cell_encoder": {"encoder": "expression", "width": "x"}}, "width"),
        ({"predict": {"set_size": -1}}, "set_size"),
    ],
)
def test_a_manifest_says_what_can_be(model: Path, keys: dict[str, Any], message: str) -> None:
    change_manifest(model, **keys)
    with pytest.raises(UserError, match=message):
        read_bundle(model)


def test_a_manifest_that_was_edited_by_hand_is_refused(model: Path) -> None:
    change(model / MANIFEST, effect_scale=2.0)
    with pytest.raises(UserError, match="its content is not what was written"):
        read_bundle(model)


def test_responses_hold_what_responses_can_hold(model: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file as load_arrays
    from safetensors.numpy import save_file as save_arrays

    path = model / "responses.safetensors"
    with safe_open(path, "np") as file:
        about = file.metadata()
    arrays = load_arrays(path)
    for name, value, message in (
        ("ratio", np.nan, "ratio is not finite"),
        ("precision", -1.0, "a precision is below zero"),
        ("precision", np.inf, "precision is not finite"),
    ):
        wrong = {key: array.copy() for key, array in arrays.items()}
        wrong[name][0, 0] = value
        save_arrays(wrong, path, about)
        seal(model)
        with pytest.raises(UserError, match=message):
            use(model)


def test_a_repository_without_a_model_is_refused(hub: HubServer) -> None:
    hub.add("ORG/other", {"README.md": b"hello", "pytorch_model.bin": b"x"})
    with pytest.raises(UserError, match=r"no shared model of this program: it has no vcc_fm.json"):
        PerturbationPipeline.from_pretrained("ORG/other")


def test_markup_in_names_is_shown_and_not_obeyed() -> None:
    name = 'TP53|<script>alert(1)</script>`x`[a](b)\n---\nlicense: mit\n{{ config }} "quoted"'
    run = Run(name, False, {name: (1, 2, 3)}, 5, "Held out.", None, {name: name}, {}, [name])
    card = model_card("ORG/NAME", run, [Ancestor(name, "data", name, name)], None, "", False, "", [name])
    head, body = card.split("\n---\n", 2)[0], card.split("\n---\n", 2)[1]
    import yaml

    metadata = yaml.safe_load(head.removeprefix("---"))
    assert metadata["license"] == "other"
    code = body[body.index("```python") : body.index("```", body.index("```python") + 3)]
    rest = body.replace(code, "")
    assert "<script>" not in rest
    assert "\nlicense: mit" not in card
    assert all(line.count("|") - line.count("\\|") in (0, 4, 5) for line in rest.splitlines())
    compile(code.removeprefix("```python"), "card", "exec")  # a name is a string in it
