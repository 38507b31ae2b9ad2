"""An adapter shared without its base, and put on it again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save, save_file
from typer.testing import CliRunner

from vcc_fm.cli import app
from vcc_fm.decoder.adapter import WEIGHTS, load_adapter
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_sealed
from vcc_fm.hub.bundle import MANIFEST, Manifest, _seal, merge_bundle, read_bundle, write_bundle
from vcc_fm.pipeline import PerturbationPipeline
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.load import load_dataset
from vcc_fm.run.share import share

BASE = "ORG/base"


def files_of_base(finished: Recipe) -> dict[str, bytes]:
    """The base of the finished run, as its owner would push it."""
    return {name: (finished.run_folder / "base" / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture
def adapter(hub: HubServer, finished: Recipe, tmp_path: Path) -> Path:
    """A shared adapter, whose base is on the Hub."""
    revision = hub.add(BASE, files_of_base(finished))
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_bundle(
        folder,
        finished.run_folder / "model",
        load_dataset(finished, 0),
        name="tiny",
        seed=0,
        effect_scale=1.0,
        predict=finished.predict,
        what="adapter",
        base=(BASE, revision),
    )
    return folder


def test_an_adapter_on_its_base_is_the_merged_model(hub: HubServer, adapter: Path, finished: Recipe) -> None:
    assert not (adapter / "model.safetensors").exists()
    found = read_bundle(adapter).decoder.state_dict()
    for name, value in load_file(finished.run_folder / "model/model.safetensors").items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    here = PerturbationPipeline.from_pretrained(finished.run_folder)
    there = PerturbationPipeline.from_pretrained(adapter)
    controls, asked = here.control_cells("gamma"), here.perturbations[:1]
    counts = [np.asarray(one(controls, asked, cells=20).X.todense()) for one in (here, there)]
    np.testing.assert_array_equal(*counts)


def test_an_adapter_is_merged_on_request(hub: HubServer, adapter: Path, finished: Recipe, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["merge", str(adapter), str(tmp_path / "merged"), "--quiet"])
    assert done.exit_code == 0, done.exception
    merged = read_bundle(tmp_path / "merged")
    assert not merged.manifest.base
    assert not (tmp_path / "merged" / "adapter").exists()
    ours = load_file(finished.run_folder / "model/model.safetensors")
    theirs = load_file(tmp_path / "merged/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(UserError, match="its weights are merged already"):
        merge_bundle(merged, tmp_path / "again")


def test_another_base_is_refused_or_gone(hub: HubServer, adapter: Path) -> None:
    hub.repos.clear()
    with pytest.raises(UserError, match="no model repository ORG/base"):
        _ = read_bundle(adapter).decoder


def test_a_model_from_scratch_has_no_adapter(finished: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no adapter, since it was trained from scratch; share it merged"):
        write_bundle(
            tmp_path,
            finished.run_folder / "base",
            load_dataset(finished, 0),
            name="tiny",
            seed=0,
            effect_scale=1.0,
            predict=finished.predict,
            what="adapter",
            base=(BASE, "main"),
        )


def test_what_is_around_the_backbone_must_fit(hub: HubServer, adapter: Path) -> None:
    around = load_file(adapter / "around.safetensors")
    del around["head.log_dispersion"]
    save_file(around, adapter / "around.safetensors")
    with pytest.raises(UserError, match=r"lack 1 tensors, such as head.log_dispersion"):
        load_adapter(adapter, BASE, None)


def without_a_key(folder: Path) -> None:
    tensors = load_file(folder / "adapter" / WEIGHTS)
    tensors.pop(next(name for name in tensors if "lora_A" in name))
    save_file(tensors, folder / "adapter" / WEIGHTS)


def of_something_else(folder: Path) -> None:
    save_file({"base_model.model.other": torch.zeros(3)}, folder / "adapter" / WEIGHTS)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter" / WEIGHTS), folder / "adapter" / "adapter_model.bin")
    (folder / "adapter" / WEIGHTS).unlink()


def settings(**keys: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter/adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return spoil


def large(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"backbone": config["backbone"] | {"intermediate_size": 10**9}}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_key, r"adapter: its weights lack 1 tensors"),
        (of_something_else, r"adapter: its weights lack \d+ tensors"),
        (pickled, r"adapter_model.bin: may hold code|has no adapter/adapter_model.safetensors"),
        (settings(r=10**9), r"in another shape \d+ tensors"),
        (settings(peft_type="XLORA"), r"is no LoRA of this program: peft_type"),
        (settings(target_modules="all-linear"), r"is no LoRA of this program: target_modules"),
        (settings(target_modules=["nothing"]), r"does not fit its base"),
        (large, r"in another shape \d+ tensors"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_hostile_adapter_is_refused(
    hub: HubServer, adapter: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(adapter)
    manifest = Manifest.model_validate(read_sealed(adapter / MANIFEST, ""))
    (adapter / MANIFEST).unlink()
    _seal(adapter, manifest, [path for path in adapter.rglob("*") if path.is_file()])
    with pytest.raises(UserError, match=message):
        _ = read_bundle(adapter).decoder


def test_the_base_of_a_run_is_pinned_and_must_be_the_same(hub: HubServer, finished: Recipe, tmp_path: Path) -> None:
    files = files_of_base(finished)
    commit = hub.add(BASE, files)
    # The run as it would be had its recipe named this base.
    decoder = finished.decoder.model_copy(update={"base": BASE})
    recipe = finished.model_copy(update={"decoder": decoder, "pretrain": None})
    (tmp_path / "first").mkdir()
    share(recipe, load_dataset(finished, 0), tmp_path / "first", "adapter", 5, lambda output: output.path)
    assert read_bundle(tmp_path / "first").manifest.base_revision == commit
    tensors = load_file(finished.run_folder / "base/model.safetensors")
    tensors["backbone.norm.weight"] += 1
    hub.add(BASE, {**files, "model.safetensors": save(tensors, {"format": "pt"})})
    assert read_bundle(tmp_path / "first").decoder is not None  # at its commit
    (tmp_path / "second").mkdir()
    with pytest.raises(UserError, match="the adapter is another model than was trained"):
        share(recipe, load_dataset(finished, 0), tmp_path / "second", "adapter", 5, lambda output: output.path)
