"""Downloads libraries and adapters from the Hugging Face hub; errors say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gks_eval.errors import HubError, LibraryError, reason
from gks_eval.library.peft_adapter import CONFIG_FILE, PICKLED, WEIGHTS_FILE
from gks_eval.library.prepared import VECTORS_FILES, vectors_folder

__all__ = ["HubSource", "fetch_adapter", "fetch_library"]

_PART = r"[A-Za-z0-9][\w.-]*"
_SOURCE = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(?:/(?P<folder>[\w.-]+(?:/[\w.-]+)*))?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubSource:
    """``org/repo[/subfolder][@revision]``."""

    repo: str
    folder: str
    revision: str | None

    @staticmethod
    def looks_like(text: str) -> bool:
        """Return whether `text` has the form of a hub source."""
        return _SOURCE.fullmatch(text) is not None and ".." not in re.split("[/@]", text)

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Read a source that `looks_like` one.

        Raises:
            HubError: `text` does not have this form.
        """
        match = _SOURCE.fullmatch(text) if cls.looks_like(text) else None
        if match is None:
            raise HubError(f"{text!r} is not written org/repo[/subfolder][@revision].")
        return cls(match["repo"], match["folder"] or "", match["revision"])

    def __str__(self) -> str:
        path = f"{self.repo}/{self.folder}" if self.folder else self.repo
        return f"{path}@{self.revision}" if self.revision else path


def fetch_adapter(source: HubSource) -> Path:
    """Download one PEFT adapter (config and safetensors only) and return its local folder.

    Raises:
        HubError: The hub cannot be reached or does not have the adapter.
        LibraryError: The adapter has no safetensors file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    prefix = f"{source.folder}/" if source.folder else ""
    with _hub_errors(source):
        config = hf_hub_download(source.repo, prefix + CONFIG_FILE, revision=source.revision)
        try:
            hf_hub_download(source.repo, prefix + WEIGHTS_FILE, revision=source.revision)
        except RemoteEntryNotFoundError:
            raise LibraryError(
                f"adapter {source} on the hub has no {WEIGHTS_FILE}; if it has {PICKLED[0]}, "
                "download that, convert it with `gks-eval convert bin FOLDER`, and name the folder."
            ) from None
    return Path(config).parent


def fetch_library(source: HubSource, manifest: str) -> Path:
    """Download a library's repository (YAML, JSON and safetensors) and return its manifest.

    Raises:
        HubError: The hub cannot be reached or does not have the library.
        LibraryError: The repository has no manifest.
    """
    from huggingface_hub import snapshot_download

    prefix = f"{source.folder}/" if source.folder else ""
    prepared = [(vectors_folder(Path(), "*") / name).as_posix() for name in VECTORS_FILES]
    patterns = [f"{prefix}{end}" for end in ("*.yaml", f"*{CONFIG_FILE}", f"*{WEIGHTS_FILE}")]
    patterns += [prefix + path for path in prepared]
    with _hub_errors(source):
        folder = snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns)
    path = Path(folder) / source.folder / manifest
    if not path.is_file():
        raise LibraryError(f"{source} on the hub has no {manifest}; it is not a library.")
    return path


@contextmanager
def _hub_errors(source: HubSource) -> Iterator[None]:
    """Turn the hub client's many exceptions into one sentence."""
    from huggingface_hub import errors

    # HfHubHTTPError derives from its HTTP client's errors, and that client depends on the version.
    failures: tuple[type[Exception], ...] = (OSError, *errors.HfHubHTTPError.__bases__)
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{source} is gated: accept its terms on the hub, then `hf auth login`."
        ) from None
    except errors.LocalEntryNotFoundError:
        raise HubError(
            f"{source} is not in the local cache and the hub cannot be reached; go online once "
            "(and unset HF_HUB_OFFLINE), or name a local folder instead."
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise HubError(
            f"{source} is not on the hub, or you have no access to it; check the name, or name a "
            "local folder."
        ) from None
    except errors.EntryNotFoundError as error:
        raise HubError(f"{source} on the hub lacks a file: {reason(error)}") from None
    except errors.HFValidationError as error:
        raise HubError(
            f"{source} is not a valid name on the hub ({reason(error)}); check it, or name a "
            "local folder."
        ) from None
    except failures as error:
        raise HubError(
            f"{source} could not be downloaded ({reason(error)}); try again when the hub "
            "can be reached, or name a local folder instead."
        ) from None
