"""One file of a hub repository to disk, from wherever the last try ended.

The hub client's own download starts a file anew after its process was killed; here NAME.partial is continued with a
Range request, and the finished file's SHA-256 is compared with the hub's where the hub knows it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from threading import Event

from thranite.loader.hub import HubUnreachable
from thranite.loader.hub_listing import RemoteFile

TIMEOUT_SECONDS = 30.0  # without a byte
PARTIAL = 206


def fetch_file(model: str, commit: str, file: RemoteFile, directory: Path, token: str | None, stop: Event) -> None:
    """`directory/NAME`, whole. Raises HubUnreachable, or the hub client's errors; what came stays for the next try.
    Once `stop` is set it breaks off, at the next byte or after TIMEOUT_SECONDS."""
    partial = directory / f"{file.name}.partial"
    if not partial.exists() or partial.stat().st_size != file.size:
        _transfer(model, commit, file, partial, token, stop)
    if stop.is_set():
        return
    size = partial.stat().st_size
    if size < file.size:
        raise HubUnreachable(f"{file.name} broke off after {size} of {file.size} bytes")
    if size > file.size or (file.sha256 is not None and _sha256(partial) != file.sha256):
        partial.unlink()
        raise HubUnreachable(f"{file.name} came damaged")
    os.replace(partial, directory / file.name)


def _transfer(model: str, commit: str, file: RemoteFile, partial: Path, token: str | None, stop: Event) -> None:
    from huggingface_hub import get_session, get_token, hf_hub_url, hf_raise_for_status

    start = partial.stat().st_size if partial.exists() else 0
    # Compressed transfers have neither ranges nor sizes.
    headers = {"Accept-Encoding": "identity"}
    if token := token or get_token():
        headers["Authorization"] = f"Bearer {token}"
    if start:
        headers["Range"] = f"bytes={start}-"
    url = hf_hub_url(model, file.name, revision=commit)
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT_SECONDS) as answer:
        hf_raise_for_status(answer)
        # Unbuffered: a killed process loses nothing. A server without ranges sends the file from its beginning.
        with partial.open("ab" if answer.status_code == PARTIAL else "wb", buffering=0) as out:
            for chunk in answer.iter_bytes():
                out.write(chunk)
                if stop.is_set():
                    return


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
