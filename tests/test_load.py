"""What stages read is opened once for all of them, and anew when it is something else."""

from __future__ import annotations

import shutil
from pathlib import Path

from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset


def changed(recipe: Recipe, **sections: dict[str, object]) -> Recipe:
    return recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=keys) for name, keys in sections.items()}
    )


def test_stages_share_a_dataset_and_what_is_fitted_to_it(tiny_run: Recipe, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.output, tmp_path / "run")
    recipe = tiny_run.model_copy(update={"output": str(tmp_path / "run")})
    data = load_dataset(recipe, 0)
    assert load_dataset(recipe, 0) is data
    assert load_dataset(changed(recipe, train={"steps": 7}), 0) is data
    assert load_dataset(recipe, 0, asked=iter([])) is data
    found = data.expected.of("gamma", data.cells.labels[0])
    other = load_dataset(changed(recipe, decoder={"unmeasured": "unchanged"}), 0)
    assert other is not data
    assert other.unmeasured == "unchanged"
    again = load_dataset(recipe, 0)
    assert again is not data  # the last one alone is kept
    assert (again.expected.of("gamma", data.cells.labels[0]).mean == found.mean).all()
    # The same store, made again.
    folder = Layout(recipe).cells.path
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert load_dataset(recipe, 0) is not again
    assert load_dataset(tiny_run, 0).cells.folder != folder
