"""The stages `embed proteins` and `embed cells`: from sequences and counts to embedding stores."""

from __future__ import annotations

from rich.console import Console

from vcc_fm.encoders.cells.embed import embed_cells as write_cells
from vcc_fm.encoders.proteins.embed import embed_proteins as write_proteins
from vcc_fm.ground.processes import process_state
from vcc_fm.recipe.embed import SequenceEncoderSettings
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.inputs import protein_fasta
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.store.cells import CellStore


def embed_proteins(recipe: Recipe, output: Output, console: Console) -> None:
    """Write one vector a gene."""
    layout, state, settings = Layout(recipe), process_state(), recipe.embed.proteins
    if recipe.data.simulate is not None and isinstance(settings, SequenceEncoderSettings) and settings.fasta is None:
        layout.cells.require()  # its stage draws the sequences
    with state.main_process_first():
        fasta = protein_fasta(recipe, layout.simulated)
    folder = recipe.embeddings_folder
    write_proteins(output.path, fasta, layout.protein_encoder, folder, output.fingerprint, state, console)


def embed_cells(recipe: Recipe, output: Output, console: Console) -> None:
    """Write one vector a cell."""
    layout = Layout(recipe)
    cells = CellStore(layout.cells.require())
    write_cells(
        output.path,
        cells,
        layout.cell_encoder,
        output.fingerprint,
        process_state(),
        console,
        settings=recipe.embed.cells,
    )
