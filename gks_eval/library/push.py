"""Uploads an exported library to the Hugging Face hub; errors say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gks_eval.errors import HubError, LibraryError, UsageError
from gks_eval.library.hub import HubSource
from gks_eval.library.library import Library
from gks_eval.util.paths import MANIFEST

__all__ = ["check_push", "push"]

_AGAIN: Final = "the export stays; run the same command again"
# Files that the hub adds to a new repository.
_EMPTY: Final = frozenset({".gitattributes"})


def check_push(library: Library, repo: str) -> None:
    """Check, before an export, that it can be uploaded.

    Args:
        library: What is exported.
        repo: The repository on the hub, ``org/name``.

    Raises:
        UsageError: `repo` is not the name of a repository.
        LibraryError: The library's base is a local folder.
    """
    if not HubSource.looks_like(repo) or str(HubSource.parse(repo).repo) != repo:
        raise UsageError(f"--push {repo:.80} is not the name of a repository; write ORG/NAME.")
    base = library.config.base_model
    if not (HubSource.looks_like(base) or base.startswith("embedded:")):
        raise LibraryError(
            f"{library.path}: base_model is the local path {base:.200}, which nobody else has; "
            f"name the base on the hub in {MANIFEST} before you push."
        )


def push(folder: Path, files: Sequence[str], repo: str) -> str:
    """Upload files of a folder to a new or empty model repository, in one commit.

    The token is the one of ``hf auth login`` or ``HF_TOKEN``.

    Args:
        folder: Where the files are.
        files: Their paths in it.
        repo: ``org/name``.

    Returns:
        The repository's address.

    Raises:
        HubError: The hub cannot be reached, refuses the token or the files, or the repository
            holds files already.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with _hub_errors(repo):
        address = str(api.create_repo(repo, exist_ok=True))
        if set(api.list_repo_files(repo)) - _EMPTY:
            raise HubError(
                f"{repo} is on the hub already and holds files; choose another name, or upload "
                f"with `hf upload {repo} {folder}`."
            )
        # `upload_folder` can make several commits; an interruption would leave some of them.
        api.create_commit(
            repo,
            [CommitOperationAdd(file, folder / file) for file in files],
            commit_message="Export of gks_eval",
        )
    return address


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn the hub client's many exceptions into one sentence, without the token."""
    from huggingface_hub import errors, get_token

    failures: tuple[type[Exception], ...] = (
        OSError,
        RuntimeError,  # from an upload thread; __cause__ says more
        ValueError,
        *errors.HfHubHTTPError.__bases__,
    )
    try:
        yield
    except failures as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
            raise HubError(
                f"{repo}: the hub does not accept the token, or there is none; run `hf auth "
                f"login` with a token that may write; {_AGAIN}."
            ) from None
        if status in (403, 404):
            raise HubError(
                f"{repo}: your token may not write there; choose a repository of yours, or log in "
                f"with a token that may; {_AGAIN}."
            ) from None
        cause = error.__cause__ or error if isinstance(error, RuntimeError) else error
        said = " ".join(str(cause).split()) or type(cause).__name__
        if token := get_token():
            said = said.replace(token, "...")
        raise HubError(f"{repo} could not be uploaded ({said:.300}); {_AGAIN}.") from None
