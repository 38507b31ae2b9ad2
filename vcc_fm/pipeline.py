"""Predictions from a trained model, without its training data: control cells and names in, cells of counts out.

    pipeline = PerturbationPipeline.from_pretrained("ORG/NAME")
    predicted = pipeline(controls, ["TP53", "KLF1+MAP2K6"], cells=400)

The control cells are brought onto the model's gene axis by the code that prepares a screen, embedded by the encoder
that the model was trained with, and predicted from by the code of the stage `predict`.
"""

from __future__ import annotations

import difflib
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from rich.console import Console

from vcc_fm import __version__
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.targets import targets_of
from vcc_fm.encoders.cells.embed import embed_cells
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import fingerprint
from vcc_fm.ground.hub import address_of, pull
from vcc_fm.ground.processes import process_state
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.ground.words import many
from vcc_fm.hub.bundle import MANIFEST, Bundle, read_bundle
from vcc_fm.prediction.asking import Asked
from vcc_fm.prediction.emission import emit_groups
from vcc_fm.prediction.predictors import DecoderPredictor
from vcc_fm.recipe.data import DataConfig, SourceConfig
from vcc_fm.recipe.parts import CELL_ENCODERS
from vcc_fm.run.share import share_run
from vcc_fm.sources.perturbations import combination
from vcc_fm.splits.split import Split
from vcc_fm.store.cells import CellStore
from vcc_fm.store.counts_file import CountsFile
from vcc_fm.store.embeddings import EmbeddingStore
from vcc_fm.store.prepare import write_cell_store

FEWEST_CONTROLS = 10
"""Control cells of a context below which there is no profile to speak of."""
FEWEST_GENES = 0.5
"""Share of the model's genes that control cells must have measured."""


class PerturbationPipeline:
    """A trained model, ready to predict.

    Attributes:
        bundle: what was loaded.
        commit: of the Hub repository, or the folder that it came from.
    """

    def __init__(self, bundle: Bundle, commit: str = "", scratch: tempfile.TemporaryDirectory[str] | None = None):
        self.bundle, self.commit = bundle, commit or str(bundle.folder)
        self._scratch = scratch  # a folder that lives as long as the pipeline
        self._config = bundle.decoder.config

    @classmethod
    def from_pretrained(
        cls, model: str | Path, revision: str | None = None, cell_encoder: dict[str, Any] | None = None
    ) -> PerturbationPipeline:
        """Load a model.

        Args:
            model: Hub id (``ORG/NAME``, ``ORG/NAME@REVISION`` or ``hf://…``), a folder that was pulled, or the folder
                of a run (``runs/NAME``).
            revision: branch, tag or commit of the Hub id.
            cell_encoder: keys of the cell encoder's settings that are others here, such as ``{"model": FOLDER}``.

        Raises:
            UserError: there is no such model, or it is not what was shared.
        """
        folder = Path(model)
        if folder.is_dir():
            if (folder / MANIFEST).is_file():
                return cls(read_bundle(folder, cell_encoder))
            scratch = tempfile.TemporaryDirectory(prefix="vcc-fm-model-")
            share_run(folder, Path(scratch.name))
            return cls(read_bundle(Path(scratch.name), cell_encoder), str(folder), scratch)
        address = address_of(str(model), revision=revision)
        if address is None or address.path:
            raise UserError(f"{model}: no such folder, and no Hub id (ORG/NAME, or ORG/NAME@REVISION)")
        place, commit = pull(address)
        return cls(read_bundle(place, cell_encoder), f"{address.repo}@{commit}")

    @property
    def genes(self) -> list[str]:
        """The gene axis of what is predicted, [G] symbols."""
        return list(self._config.genes)

    @property
    def contexts(self) -> list[str]:
        """The contexts that the model was trained on; others may be asked for."""
        return list(self._config.contexts)

    @property
    def perturbations(self) -> list[str]:
        """The perturbations that were measured in training; others may be asked for."""
        return sorted({label for _, label in self.bundle.expected.responses.groups})

    def control_cells(self, context: str) -> anndata.AnnData:
        """The control cells of a training context that were shared with the model: counts, to try it on.

        Raises:
            UserError: there are none.
        """
        cells = self.bundle.controls
        if cells is None or context not in cells.contexts:
            known = ", ".join(cells.contexts) if cells is not None else "no context"
            raise UserError(f"no control cells of {context!r} came with the model; it has those of {known}")
        rows = cells.rows(context, cells.control)
        measured = cells.measured[np.unique(cells.batch[rows])].all(axis=0)
        obs = pd.DataFrame(
            {"context": context, "batch": np.asarray(cells.batches)[cells.batch[rows]]}, index=cells.barcodes[rows]
        )
        var = pd.DataFrame(index=pd.Index(np.asarray(cells.genes)[measured]))
        return anndata.AnnData(cells.sparse(rows)[:, measured], obs=obs, var=var)

    def __call__(
        self, controls: anndata.AnnData, perturbations: Sequence[str], cells: int = 400, **options: Any
    ) -> anndata.AnnData:
        """Predict cells.

        Args:
            controls: unperturbed cells [n, genes], and no others, of one context or several, in any gene order. ``X``
                holds counts, or values from which counts are proved, as in a recipe with ``values: auto``. ``obs`` may
                have the columns ``context`` and ``batch``.
            perturbations: target genes; those of a combination joined as in training (``KLF1+MAP2K6``), in any order:
                ``obs`` has them in alphabetical order, as the model was trained.
            cells: predicted for each perturbation in each context.
            options: of :meth:`write`.

        Returns:
            Counts [cells, G] int32 CSR, each context and perturbation after the other; ``obs`` has ``context``,
            ``perturbation`` and ``batch``, ``uns`` says what made them.

        Raises:
            UserError: as :meth:`write`.
        """
        with tempfile.TemporaryDirectory(prefix="vcc-fm-predict-") as folder:
            path = Path(folder, "predicted.h5ad")
            self.write(path, controls, perturbations, cells, **options)
            return anndata.read_h5ad(path)

    def write(
        self,
        path: Path,
        controls: anndata.AnnData,
        perturbations: Sequence[str],
        cells: int = 400,
        *,
        context: str = "controls",
        seed: int | None = None,
        effect_scale: float | None = None,
        values: str = "auto",
        symbols: str = "index",
        console: Console | None = None,
    ) -> None:
        """Predict as by a call, into an h5ad file.

        Args:
            path: of the file.
            controls: as of a call.
            perturbations: as of a call.
            cells: as of a call.
            context: of all cells, where ``obs`` has no column ``context``. What a training perturbation did in a
                context of the same name is used.
            seed: of what is drawn; None is the run's.
            effect_scale: factor on predicted log ratios; None is the model's own.
            values: what ``X`` holds, as in a recipe.
            symbols: column of ``var`` with gene symbols, or ``index``.
            console: where progress goes.

        Raises:
            UserError: a target gene is unknown; a context has too few control cells; too many genes are missing; or
                the values are refused.
        """
        console = Console(quiet=True) if console is None else console
        bundle, manifest = self.bundle, self.bundle.manifest
        perturbations = self._check_asked(perturbations, cells)
        seed = manifest.seed if seed is None else seed
        scale = manifest.effect_scale if effect_scale is None else effect_scale
        with tempfile.TemporaryDirectory(prefix="vcc-fm-controls-") as scratch:
            data = self._dataset(Path(scratch), controls, context, values, symbols, console)
            predictor = DecoderPredictor(data, bundle.decoder, bundle.predict.set_size, process_state().device)
            asked = [Asked(0, one, label, cells) for one in data.cells.contexts for label in perturbations]
            progress, total = ProgressLines("predict", "cells", console), cells * len(asked)
            with CountsFile(path, data.cells.genes, self._about(seed, scale)) as file:
                for number, one in enumerate(asked):
                    emit_groups(file, data, predictor, scale, [one], bundle.predict, seed)
                    progress((number + 1) * cells, total)

    def _check_asked(self, perturbations: Sequence[str], cells: int) -> list[str]:
        """The perturbations as the model names them; refuses what it cannot predict."""
        separator, control = self.bundle.manifest.separator, self.bundle.manifest.control
        if isinstance(perturbations, str) or not perturbations:
            raise UserError("perturbations: give a list of target genes, such as ['TP53']")
        if cells < 1:
            raise UserError(f"cells={cells}: give a number above zero")
        labels = [combination(label.split(separator), separator) for label in perturbations]
        if repeated := sorted(label for label, number in Counter(labels).items() if number > 1):
            raise UserError(f"perturbations: {repeated[0]} stands twice; name each once")
        known = {*self._protein_names(), *self._config.learned_targets}
        targets = targets_of(labels, separator)
        if control in targets:
            raise UserError(f"perturbations: {control} is the control; control cells need no prediction")
        if unknown := sorted(targets - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(
                f"perturbations: {len(unknown)} target genes have no protein vector in this model: "
                f"{', '.join(unknown[:8])}{'; …' if len(unknown) > 8 else ''}{hint}; "
                f"leave them out, or write a combination with {separator!r} between its genes"
            )
        return labels

    def _protein_names(self) -> dict[str, str]:
        """Symbol -> its name among the proteins, for every gene that can be asked for."""
        return {str(name): str(name) for name in self.bundle.proteins.keys} | self.bundle.manifest.protein_names

    def _dataset(
        self, folder: Path, controls: anndata.AnnData, context: str, values: str, symbols: str, console: Console
    ) -> Dataset:
        """The control cells on the model's axis, with their vectors and all that the model knows besides."""
        bundle, manifest, state = self.bundle, self.bundle.manifest, process_state()
        source = self._source(folder, controls, context, values, symbols)
        (folder / "genes.txt").write_text("\n".join(self.genes))
        config = DataConfig(sources=[source], genes=str(folder / "genes.txt"))
        # In the order in which they were given: so the controls of a run give what the run predicts.
        made_from = fingerprint([str(folder)])
        write_cell_store(folder / "cells", config, [source], None, made_from, self._config.simulated, state, console)
        cells = CellStore(folder / "cells")
        self._check_controls(cells)
        encoder = CELL_ENCODERS[bundle.settings.encoder](bundle.settings)
        vectors = folder / "vectors"
        embed_cells(vectors, cells, encoder, made_from, state, console, bundle.encoder_folder)
        return Dataset(
            cells,
            EmbeddingStore(vectors),
            bundle.proteins,
            Split("none", 0, 1, 0, {}, {}, []),
            manifest.separator,
            self._protein_names(),
            "learned",
            bundle.settings,
            bundle.expected,
        )

    def _source(
        self, folder: Path, controls: anndata.AnnData, context: str, values: str, symbols: str
    ) -> SourceConfig:
        """The control cells in a file, with the labels that a source has."""
        if not controls.n_obs:
            raise UserError("controls: no cells; a prediction starts from control cells")
        control = self.bundle.manifest.control
        for column in controls.obs.select_dtypes(exclude="number"):
            labels = set(controls.obs[column].astype(str))
            if control in labels and len(labels) > 1:
                raise UserError(
                    f"controls: obs.{column} has {many(len(labels) - 1, 'label')} beside {control}; give the control "
                    f"cells alone, such as table[table.obs[{column!r}] == {control!r}]"
                )
        obs = pd.DataFrame({"perturbation": control}, index=controls.obs_names.astype(str))
        for column in ("context", "batch"):
            if column in controls.obs:
                obs[column] = controls.obs[column].astype(str).to_numpy()
        file = folder / "controls.h5ad"
        anndata.AnnData(controls.X, obs=obs, var=controls.var).write_h5ad(file)
        return SourceConfig.model_validate(
            {
                "name": "controls",
                "path": str(file),
                "values": values,
                "symbols": symbols,
                "perturbation_column": "perturbation",
                "control": control,
                "separator": self.bundle.manifest.separator,
                "batch_column": "batch" if "batch" in obs else None,
                **({"context_column": "context"} if "context" in obs else {"context": context}),
            }
        )

    def _check_controls(self, cells: CellStore) -> None:
        for (context, _), number in sorted(cells.group_cells.items()):
            if number < FEWEST_CONTROLS:
                raise UserError(
                    f"controls: context {context} has {number} control cells, {FEWEST_CONTROLS} are the fewest that "
                    "tell what is normal there; give more"
                )
        missing = np.flatnonzero(~cells.measured_by_source[0])
        names = ", ".join(np.asarray(cells.genes)[missing[:5]])
        said = f"controls: {len(missing):,} of the model's {len(cells.genes):,} genes are missing, such as {names}"
        if len(missing) > (1 - FEWEST_GENES) * len(cells.genes):
            raise UserError(f"{said}; name the column of var with gene symbols (symbols=COLUMN), or give more genes")
        if len(missing):
            warnings.warn(f"{said}; they are not predicted (0 in every cell)", stacklevel=4)

    def _about(self, seed: int, scale: float) -> dict[str, Any]:
        """What the file says of itself in ``uns``."""
        config = self._config
        return {
            "model": self.commit,
            "recipe": self.bundle.manifest.name,
            "recipe_fingerprint": config.recipe_fingerprint,
            "vcc_fm": __version__,
            "values": "counts",
            "predictor": "model",
            "seed": seed,
            "effect_scale": scale,
            "simulated": config.simulated,
            "licences": sorted(
                {
                    config.cell_encoder["licence"],
                    config.protein_encoder["licence"],
                    *([config.started_from["licence"]] if config.started_from else []),
                }
            ),
        }
