"""A folder on a hub, through huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shfcas_lib.base.errors import InputError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check(repository: str) -> None:
    """Raise InputError for an id that is none, and where the environment holds no token: before
    the work that would then be pushed."""
    if not _ID.fullmatch(repository):
        raise InputError(f"--push-to-hub: found {repository!r}, expected owner/name")
    if not os.environ.get("HF_TOKEN"):
        raise InputError(
            "--push-to-hub needs the environment variable HF_TOKEN, a token that may write"
        )


def push(folder: Path, repository: str, kind: str) -> str:
    """Upload everything in a folder to a repository of `kind` (model or dataset), which is made,
    private, where it is not there. Returns its address. Raises InputError."""
    from huggingface_hub import HfApi

    check(repository)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"])
    try:
        api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(
            folder_path=str(folder),
            repo_id=repository,
            repo_type=kind,
            commit_message="Exported by shfcas",
        )
    except Exception as error:  # no network, no right to write, a hub that refuses
        told = " ".join(str(error).replace(os.environ["HF_TOKEN"], "***").split())[:300]
        raise InputError(
            f"{repository} cannot be pushed to: {told or type(error).__name__}; {folder} is whole"
        ) from error
    return f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"
