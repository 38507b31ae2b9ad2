"""Push and pull through the real client, against a Hub on this machine, also where it goes wrong."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
import yaml
from hub_server import TOKEN, Fault, HubServer
from program import QUIET
from safetensors.torch import load_file, save
from transformers import AutoModel

from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.hub import address_of, pull, push
from vcc_fm.ground.paths import without_folders
from vcc_fm.hub.licences import Ancestor, ancestors_of, require_accepted
from vcc_fm.pipeline import PerturbationPipeline
from vcc_fm.recipe.hub import HubConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.stages import run_stage, stage_named
from vcc_fm.store.cells import CellStore
from vcc_fm.store.verify import verify

REPO = "ORG/tiny"


def shared(recipe: Recipe, **hub: Any) -> Recipe:
    """The recipe with a section ``hub``."""
    content = recipe.model_dump(mode="json") | {"hub": {"repo": REPO} | hub}
    return Recipe.model_validate(content)


def push_run(recipe: Recipe, **hub: Any) -> dict[str, Any]:
    """Push a finished run; what ``pushed.json`` says."""
    one = shared(recipe, **hub)
    (one.run_folder / "pushed.json").unlink(missing_ok=True)
    run_stage(stage_named("push", one), one, QUIET)
    return json.loads((one.run_folder / "pushed.json").read_text())


def counts(table: anndata.AnnData) -> np.ndarray:
    return np.asarray(table.X.todense())


# --------------------------------------------------------------------------------------------------------------- model
def test_a_model_comes_back_as_it_was_pushed(hub: HubServer, finished: Recipe) -> None:
    said = push_run(finished)
    here = PerturbationPipeline.from_pretrained(finished.run_folder)
    there = PerturbationPipeline.from_pretrained(REPO)
    assert there.commit == f"{REPO}@{said['pushed'][0]['commit']}"
    controls, asked = here.control_cells("gamma"), here.perturbations[:2]
    assert (counts(here(controls, asked, cells=25)) == counts(there(controls, asked, cells=25))).all()
    expected = {"README.md", "config.json", "model.safetensors", "vcc_fm.json", "run/scores.json", "run/split.json"}
    assert expected <= set(hub.files(REPO))
    assert hub.repos["model", REPO].messages == ["initial commit", "tiny: model"]


def test_nothing_of_this_machine_is_told(hub: HubServer, finished: Recipe, tmp_path: Path) -> None:
    push_run(finished, what="all")
    secrets = [str(finished.run_folder.parents[1]).encode(), TOKEN.encode(), str(Path.home()).encode() + b"/"]
    for kind in ("model", "dataset"):
        for name, content in hub.files(REPO, kind).items():
            for secret in secrets:
                assert secret not in content, (kind, name, secret)


def test_a_second_push_is_one_commit_more_and_the_first_can_be_had(hub: HubServer, finished: Recipe) -> None:
    first = push_run(finished)["pushed"][0]["commit"]
    again = push_run(finished)["pushed"][0]["commit"]
    assert again == first  # nothing had changed
    other = push_run(finished, controls=20)["pushed"][0]["commit"]
    assert other != first
    assert len(hub.repos["model", REPO].messages) == 3
    sizes = [
        PerturbationPipeline.from_pretrained(REPO, revision=one).control_cells("gamma").n_obs for one in (first, other)
    ]
    assert sizes == [70, 20]
    push_run(finished, controls=0)
    assert not [name for name in hub.files(REPO) if name.startswith("controls/")]
    with pytest.raises(UserError, match="no control cells of 'gamma' came with the model"):
        PerturbationPipeline.from_pretrained(f"hf://{REPO}").control_cells("gamma")


def test_a_branch(hub: HubServer, finished: Recipe) -> None:
    push_run(finished, revision="v2")
    assert set(hub.files(REPO)) == {".gitattributes"}
    assert PerturbationPipeline.from_pretrained(f"{REPO}@v2").perturbations
    with pytest.raises(UserError, match=f"{REPO} has no revision v3"):
        PerturbationPipeline.from_pretrained(REPO, revision="v3")


def test_offline_from_the_cache(hub: HubServer, finished: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    push_run(finished)
    online = PerturbationPipeline.from_pretrained(REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert PerturbationPipeline.from_pretrained(REPO).commit == online.commit
    assert len(hub.asked) == asked
    with pytest.raises(UserError, match="not in the local cache, and the Hub cannot be reached"):
        PerturbationPipeline.from_pretrained("ORG/other")


def test_a_private_model_needs_a_token(hub: HubServer, finished: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    push_run(finished, private=True)
    assert hub.repos["model", REPO].private
    monkeypatch.setenv("HF_TOKEN", "hf_anothertoken")
    with pytest.raises(UserError, match="no model repository ORG/tiny; check the name, or `hf auth login`") as caught:
        PerturbationPipeline.from_pretrained(REPO)
    assert "hf_" not in str(caught.value)


def test_the_card_tells_what_was_measured(hub: HubServer, finished: Recipe) -> None:
    push_run(finished, licence="cc-by-4.0")
    card = hub.files(REPO)["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["library_name"] == "vcc_fm"
    assert "simulated-data" in metadata["tags"]
    scores = json.loads((finished.run_folder / "scores.json").read_text())
    model = next(one for one in scores["means"] if one["entry"] == "model" and one["context"] == "all contexts")
    values = {one["type"]: one["value"] for one in metadata["model-index"][0]["results"][0]["metrics"]}
    assert values["scaled_mean"] == pytest.approx(model["scaled"])
    kinds = re.findall(r"^\| [^|]+ \| (baseline|model|ceiling) \|", card, re.MULTILINE)
    assert len(kinds) == len({one["entry"] for one in scores["means"]}) > 3
    assert kinds == sorted(kinds, key=["baseline", "model", "ceiling"].index)
    assert "All cells of this model are simulated" in card
    assert "LICENSES/simulated.txt" in hub.files(REPO)


# -------------------------------------------------------------------------------------------------------------- stores
def test_pushed_stores_come_back_whole(hub: HubServer, finished: Recipe, tmp_path: Path) -> None:
    push_run(finished, what="stores")
    address = address_of(REPO, "dataset")
    assert address is not None
    folder, _ = pull(address, folder=tmp_path / "pulled")
    for name in ("cells", "cell-embeddings", "proteins"):
        original = finished.embeddings_folder / name
        assert verify(folder / name)["rows"] > 0
        for file in original.iterdir():
            assert (folder / name / file.name).read_bytes() == file.read_bytes()


def test_stores_are_shared_before_there_is_a_split(hub: HubServer, finished: Recipe, tmp_path: Path) -> None:
    shutil.copytree(finished.embeddings_folder, tmp_path / "embeddings" / finished.name)
    one = load_recipe(finished.run_folder / "model/recipe.json", [f"output={tmp_path}"])
    one = one.model_copy(update={"hub": HubConfig(repo=REPO, what="stores")})
    run_stage(stage_named("push", one), one, QUIET)
    card = hub.files(REPO, "dataset")["README.md"].decode()
    cells = CellStore(finished.embeddings_folder / "cells")
    gamma = sum(
        n for (context, label), n in cells.group_cells.items() if context == "gamma" and label != cells.control
    )
    assert f"| gamma | 8 | {gamma} | 70 |" in card
    assert yaml.safe_load(card.split("---")[1])["configs"][0]["config_name"] == "cells"


def test_predictions_and_everything(hub: HubServer, finished: Recipe) -> None:
    push_run(finished, what="predictions")
    names = set(hub.files(REPO, "dataset"))
    assert {"predictions/predictions.h5ad", "predictions/truth.h5ad", "run/scores.csv"} <= names
    assert ("model", REPO) not in hub.repos
    said = push_run(finished, what="all")
    assert [one["kind"] for one in said["pushed"]] == ["dataset", "model"]
    assert {"cells/store.json", "predictions/control.h5ad"} <= set(hub.files(REPO, "dataset"))
    metadata = yaml.safe_load(hub.files(REPO)["README.md"].decode().split("---")[1])
    assert metadata["datasets"] == [REPO]


# -------------------------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/preupload/", 500, 99),
        Fault("POST", "/objects/batch", 500, 99),
        Fault("PUT", "/lfs/", 500, 99),
        Fault("PUT", "/lfs/", "cut", 99),
        Fault("POST", "/commit/", 500, 99),
        Fault("POST", "/commit/", 403, 99),
        Fault("POST", "/api/repos/create", 401, 99),
    ],
    ids=lambda fault: f"{fault.pattern.pattern} {fault.what}",
)
def test_a_push_that_fails_leaves_no_commit_and_can_be_repeated(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits between its tries
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    hub.faults = [fault]
    with pytest.raises(UserError) as caught:
        push(folder, REPO, "model", "one")
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert hub.repos.get(("model", REPO)) is None or set(hub.files(REPO)) == {".gitattributes"}
    hub.faults, sent = [], set(hub.large)
    hub.asked.clear()
    push(folder, REPO, "model", "one")
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", "model.safetensors"}
    assert len([one for one in hub.asked if one.startswith("PUT /lfs/")]) == 1 - len(sent)  # what is there stays
    assert hub.repos["model", REPO].messages == ["initial commit", "one"]


def test_a_pull_lives_through_a_cut_and_can_be_repeated(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add(REPO, {"config.json": b"{}", "model.safetensors": b"y" * 5000})
    address = address_of(REPO)
    assert address is not None
    hub.faults = [Fault("GET", "/resolve/.*/model", 500)]
    with pytest.raises(UserError, match=r"the Hub answers 500: .*; try again later"):
        pull(address)
    hub.faults = [Fault("GET", "/resolve/.*/model", "cut")]
    folder, _ = pull(address)
    assert (folder / "model.safetensors").read_bytes() == b"y" * 5000


def test_the_decoder_class_pushes_and_pulls_itself(hub: HubServer, finished: Recipe) -> None:
    decoder = PerturbationDecoder.from_pretrained(finished.run_folder / "model")
    decoder.push_to_hub("ORG/decoder")
    again = AutoModel.from_pretrained("ORG/decoder")
    assert isinstance(again, PerturbationDecoder)
    for name, value in decoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    tensors = load_file(finished.run_folder / "model/model.safetensors")
    del tensors["head.log_dispersion"]
    hub.add("ORG/short", {**hub.files("ORG/decoder"), "model.safetensors": save(tensors, {"format": "pt"})})
    with pytest.raises(UserError, match=r"1 tensors are missing, such as head.log_dispersion"):
        AutoModel.from_pretrained("ORG/short")


def test_a_client_that_insists_on_xet(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    folder, content = tmp_path / "out", np.random.default_rng(0).bytes(300_000)
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.safetensors").write_bytes(content)
    hub.xet = tmp_path / "xet"
    hub.in_xet = {hashlib.sha256(content).hexdigest(): content}
    push(folder, REPO, "model", "one")
    assert not [one for one in hub.asked if one.startswith("PUT /lfs/")]
    assert hub.files(REPO)["model.safetensors"] == content
    assert sum(file.stat().st_size for file in hub.xet.rglob("*") if file.is_file()) >= len(content)
    assert hub.repos["model", REPO].messages == ["initial commit", "one"]


def test_content_that_is_not_what_was_pushed_is_seen(hub: HubServer, finished: Recipe) -> None:
    push_run(finished)
    hub.faults = [Fault("GET", "/resolve/.*/responses.safetensors", "wrong")]
    with pytest.raises(UserError, match=r"responses.safetensors: its content is not what vcc_fm.json says"):
        PerturbationPipeline.from_pretrained(REPO)


def test_an_expired_token(hub: HubServer, tmp_path: Path) -> None:
    hub.token = "hf_new"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/README.md").write_text("a")
    with pytest.raises(UserError, match=r"`hf auth login`"):
        push(tmp_path / "a", REPO, "model", "one")
    assert not hub.repos


def test_no_token_at_all(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"`hf auth login`"):
        push(tmp_path / "a", REPO, "model", "one")


# ------------------------------------------------------------------------------------------------------------ licences
def test_terms_that_limit_are_shown_before_anything_is_sent(finished: Recipe) -> None:
    config = json.loads((finished.run_folder / "model/config.json").read_text())
    found = ancestors_of(config, [("atlas", "CC BY-NC 4.0", None), ("mine", None, "Me 2026")])
    assert [one.name for one in found if one.limits] == ["atlas"]
    with pytest.raises(UserError, match=r"nothing was sent: .*atlas \(data\): CC BY-NC 4.0.*--accept-licence atlas"):
        require_accepted(found, [])
    require_accepted(found, ["atlas"])
    se = Ancestor("state-se", "encoder of cells", "Non-commercial use only", "")
    assert se.limits
    for text in ("non commercial", "cc_by_nc_4.0", "Academic use only", "for research purposes only", "CC BY-ND 4.0"):
        assert Ancestor("a", "data", text, "").limits, text
    for text in ("CC BY 4.0", "MIT", "CC0-1.0", "Apache-2.0", "reference and sync"):
        assert not Ancestor("a", "data", text, "").limits, text
    assert not Ancestor("a", "data", "no weights; the licence of the sequences applies", "").limits


# ------------------------------------------------------------------------------------------------------------- address
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ORG/NAME", ("ORG/NAME", "model", "main", "")),
        ("ORG/NAME@v1", ("ORG/NAME", "model", "v1", "")),
        ("hf://ORG/NAME@refs%2Fpr%2F1", ("ORG/NAME", "model", "refs/pr/1", "")),
        ("hf://datasets/ORG/NAME/cells", ("ORG/NAME", "dataset", "main", "cells")),
        ("ORG/NAME/deeper", None),
        ("NAME", None),
        ("/ORG/NAME", None),
        ("hf://spaces/ORG/NAME", None),
        ("https://x/y", None),
    ],
)
def test_addresses(text: str, expected: tuple[str, str, str, str] | None) -> None:
    found = address_of(text)
    assert (None if found is None else (found.repo, found.kind, found.revision, found.path)) == expected


# --------------------------------------------------------------------------------------------------------------- paths
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/SE-600M", "SE-600M"),
        ("/home/alice/SE-600M/", "SE-600M"),
        ("~/models/x.pt", "x.pt"),
        ("../alice/x.h5ad", "x.h5ad"),
        ("file:///home/alice/x.h5ad", "x.h5ad"),
        ("source (/data/x.h5ad): bad, /data/y", "source (x.h5ad): bad, y"),
        ("${VCC_FM_DATA}/x.h5ad", "${VCC_FM_DATA}/x.h5ad"),
        ("https://a.b/c/d", "https://a.b/c/d"),
        ("hf://datasets/ORG/NAME/cells", "hf://datasets/ORG/NAME/cells"),
        ("arcinstitute/SE-600M", "arcinstitute/SE-600M"),
        ("and/or 3 / 4 UMI/cell", "and/or 3 / 4 UMI/cell"),
    ],
)
def test_folders_of_this_machine_are_cut(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_an_upload_that_breaks_off_leaves_no_model_without_its_data(
    hub: HubServer, finished: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.faults = [Fault("POST", "/api/datasets/ORG/tiny/commit/", 500, 99)]
    with pytest.raises(UserError, match="the Hub answers 500"):
        push_run(finished, what="all")
    assert ("model", REPO) not in hub.repos
    assert not (finished.run_folder / "pushed.json").exists()
    hub.faults = []
    assert len(push_run(finished, what="all")["pushed"]) == 2
