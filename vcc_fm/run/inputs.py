"""The recipe's inputs: sources and sequences, drawn first where they are simulated."""

from __future__ import annotations

from pathlib import Path

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.hub import address_of, expanded
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.embed import SequenceEncoderSettings
from vcc_fm.recipe.recipe import Recipe


def source_configs(recipe: Recipe, simulated: Path, draw: bool = True, fetch: bool = True) -> list[SourceConfig]:
    """The recipe's sources, by their paths here; none where it takes a store that is there.

    Args:
        recipe: of the run.
        simulated: folder into which a simulated screen is drawn first, if ``draw``.
        draw: see above.
        fetch: whether a source with an address is fetched; else it keeps its address.

    Raises:
        UserError: a source cannot be fetched.
    """
    if recipe.data.simulate is None:
        from vcc_fm.sources.remote import open_local

        return [
            one.model_copy(update={"path": str(open_local(one.path, one.get))}) if fetch and "://" in one.path else one
            for one in recipe.data.sources
        ]
    from vcc_fm.sources.simulate import simulate, simulated_sources

    if not draw:
        return simulated_sources(recipe.data.simulate, simulated)
    simulated.mkdir(parents=True, exist_ok=True)
    return simulate(recipe.data.simulate, recipe.seed, simulated)


def protein_fasta(recipe: Recipe, simulated: Path) -> Path | None:
    """The FASTA file of the recipe, here: fetched first where the recipe gives an address.

    Returns:
        None where the encoder of proteins reads no sequences.

    Raises:
        UserError: the recipe names none and nothing is simulated, or it cannot be had.
    """
    settings = recipe.embed.proteins
    if not isinstance(settings, SequenceEncoderSettings):
        return None
    if settings.fasta is not None:
        from vcc_fm.sources.remote import open_local

        return open_local(settings.fasta, settings.get, sha256=settings.sha256)
    if recipe.data.simulate is None:
        raise UserError("embed.proteins.fasta is missing: target genes become tokens through their protein sequences")
    return simulated / "proteins.fasta"


def base_address(recipe: Recipe) -> tuple[str, str]:
    """Hub id and revision of the base that an adapter is put on.

    Raises:
        UserError: the base lies on this machine alone.
    """
    named = expanded(recipe.decoder.base)
    address = None if Path(named).exists() else address_of(named, revision=recipe.decoder.revision)
    if address is None:
        raise UserError(
            f"hub.what=adapter: its base (decoder.base={recipe.decoder.base}) has no address that others reach; "
            "push that base first and name it, or share the merged model"
        )
    return address.repo, address.revision
