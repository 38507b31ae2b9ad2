"""What the tests of `vcc-fm inspect` have in common."""

import io

import yaml
from rich.console import Console
from tiny_screens import write_store

from vcc_fm.inspection.text import print_inspection
from vcc_fm.recipe.data import DataConfig
from vcc_fm.sources.anndata_source import AnnDataSource

GENES = [f"GENE{chr(65 + i)}{j}" for i in range(6) for j in range(10)]


def text_of(found):
    stream = io.StringIO()
    print_inspection(found, Console(file=stream, width=200))
    return stream.getvalue()


def opened(found):
    """The source that the suggested lines describe, read through the recipe's own checks."""
    config = DataConfig.model_validate(yaml.safe_load(found.recipe)["data"]).sources[0]
    return AnnDataSource(config)


def prepared(found, folder):
    """The store that `prepare` writes from the suggested lines."""
    return write_store(folder / "store", DataConfig.model_validate(yaml.safe_load(found.recipe)["data"]).sources)


def only(problems, part):
    hits = [problem for problem in problems if part in problem]
    assert len(hits) == 1, problems
    return hits[0]
