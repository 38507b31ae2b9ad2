"""The Hugging Face Hub: a repository pulled at a commit, or pushed in one commit.

Caches, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and the token are the client's own matter. No message shows a token.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from vcc_fm.ground.errors import UserError, first_line
from vcc_fm.ground.paths import expand, without_secrets

Kind = Literal["model", "dataset"]

_NAME = r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/@]+))?"
_ADDRESS = re.compile(rf"(?:hf://(?:(?P<kind>datasets)/|(?!(?:datasets|spaces)/)))?{_NAME}(?:/(?P<path>.+))?")


@dataclass(frozen=True)
class Address:
    """A repository, or something in one.

    Attributes:
        repo: ``ORG/NAME``.
        kind: of the repository.
        revision: branch, tag or commit.
        path: of a file or folder in it, empty for all of it.
    """

    repo: str
    kind: Kind = "model"
    revision: str = "main"
    path: str = ""

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def expanded(model: str) -> str:
    """A model as a recipe names it: a path with its variables expanded, or an address of the Hub as it is."""
    return model if model.startswith("hf://") else str(expand(model))


def address_of(text: str, kind: Kind = "model", revision: str | None = None) -> Address | None:
    """The repository that ``hf://[datasets/]ORG/NAME[@REVISION][/PATH]`` or ``ORG/NAME[@REVISION]`` names.

    Slashes of a revision are written ``%2F``.

    Args:
        text: as a user writes it.
        kind: of a repository that is named without ``hf://``.
        revision: where the name itself has none; ``main`` where there is none either.

    Returns:
        None where it is no such name.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or (match["path"] and not text.startswith("hf://")):
        return None
    if text.startswith("hf://"):
        kind = "dataset" if match["kind"] else "model"
    named = unquote(match["revision"]) if match["revision"] else revision or "main"
    return Address(match["repo"], kind, named, match["path"] or "")


def download_file(address: Address, shown: str) -> Path:
    """One file of a repository, from the Hugging Face cache where it is there.

    Raises:
        UserError: it cannot be had; ``shown`` is what the message calls it.
    """
    from huggingface_hub import hf_hub_download

    with _explained(address, shown):
        return Path(hf_hub_download(address.repo, address.path, repo_type=address.kind, revision=address.revision))


def pull(address: Address, patterns: list[str] | None = None, folder: Path | None = None) -> tuple[Path, str]:
    """The files of a repository at one commit.

    Args:
        address: of the repository.
        patterns: names of files; None is all.
        folder: where copies go; None leaves them in the Hugging Face cache.

    Returns:
        The folder that holds them, and the commit.

    Raises:
        UserError: they cannot be had, or are not all there.
    """
    from huggingface_hub import HfApi, snapshot_download

    repo, kind, revision = address.repo, address.kind, address.revision
    with _explained(address, f"hf://{address}"):
        if folder is None:
            place = Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
            return place, place.name  # the cache names a snapshot by its commit
        commit = str(HfApi().repo_info(repo, repo_type=kind, revision=revision).sha)
        snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=patterns, local_dir=folder)
        return folder, commit


def push(
    folder: Path, repo: str, kind: Kind, message: str, private: bool = False, revision: str | None = None
) -> tuple[str, str]:
    """Make a repository hold the files of a folder, and no others, in one commit.

    Large files travel before the commit; where that breaks off there is no commit, and the next push sends only what
    the Hub does not have yet.

    Args:
        folder: with the files.
        repo: ``ORG/NAME``, made if it is not there.
        kind: of repository.
        message: of the commit.
        private: whether a new repository is private; one that is there stays as it is.
        revision: branch, made if it is not there; None is ``main``.

    Returns:
        Address of the commit, and its hash.

    Raises:
        UserError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    api, address = HfApi(), Address(repo, kind, revision or "main")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    with _explained(address, repo), warnings.catch_warnings():
        # An embedding store in a model's repository is meant.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        try:
            there = api.list_repo_files(repo, repo_type=kind, revision=revision)
        except RevisionNotFoundError:  # nothing was ever pushed
            there = []
        gone = set(there) - {*files, ".gitattributes"}
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete]
        operations = [CommitOperationDelete(name) for name in sorted(gone)]
        operations += [CommitOperationAdd(name, folder / name) for name in files]
        done = api.create_commit(repo, operations, commit_message=message, repo_type=kind, revision=revision)
    return str(done.commit_url), str(done.oid)


def show_progress(show: bool) -> None:
    """Whether the client shows how far its transfers are."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if show else disable_progress_bars)()


@contextmanager
def _explained(address: Address, shown: str) -> Iterator[None]:
    """Say in a line what the client says in several, and what to do."""
    from huggingface_hub import errors

    repo, kind, revision = address.repo, address.kind, address.revision
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{shown}: {repo} is gated; accept its terms on the Hub and run `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{shown}: no {kind} repository {repo}; check the name, or `hf auth login` if it is private or your token "
            "has expired"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{shown}: {repo} has no revision {revision}; name a branch, a tag or a commit") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{shown}: not in the local cache, and the Hub cannot be reached; check the network and HF_HUB_OFFLINE"
        ) from None
    except errors.EntryNotFoundError:
        raise UserError(f"{shown}: {repo} has no file {address.path} in revision {revision}") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        what = {
            401: "your token is not known there, or has expired; run `hf auth login`",
            403: "your token may not do this; take one with write access (`hf auth login`)",
        }.get(code, f"the Hub answers {code}: {_said(error)}; try again later")
        raise UserError(f"{shown}: {what}") from None
    except errors.LocalTokenNotFoundError:
        raise UserError(f"{shown}: no token of the Hub is known here; run `hf auth login`, or set HF_TOKEN") from None
    except (ValueError, OSError, RuntimeError, errors.HTTPError) as error:
        raise UserError(f"{shown}: not transferred ({_said(error)}); check the address and the network") from None


def _said(error: BaseException) -> str:
    return without_secrets(first_line(error))
