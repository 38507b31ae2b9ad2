"""Fixtures of the tests of sharing: the Hub at hand, and a finished run of the tiny recipe."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import TOKEN, HubServer

from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub on this machine, to which the client of this process talks with a token and an empty cache."""
    server = HubServer()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The client has read its environment by now.
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.close()


@pytest.fixture(scope="session")
def finished(scored_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The tiny recipe, run to its scores, in folders of its own."""
    home = tmp_path_factory.mktemp("finished") / "home"
    shutil.copytree(scored_run.parent, home)
    return load_recipe(scored_run, [f"output={home}"])
