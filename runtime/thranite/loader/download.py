"""`thranite download`: a hub model into a directory, whole or not at all, however often it is interrupted.

    DIR/.thranite-download.lock    held while one process works; a second one waits
    DIR/.incomplete-COMMIT/        where files grow; kept for the next try after a failure
    DIR/.incomplete-COMMIT/.moving from when on files of DIR are that commit's, if they are not here any more
    DIR/.thranite-download.json    written last: the model, its commit, every file's size

DIR may be a mount point, so it is never renamed itself: finished files move into it, the marker last of all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from thranite.errors import ConfigError, StartupError
from thranite.loader.download_marker import Marker, read_marker, remove_marker
from thranite.loader.hub import HubUnreachable, hub_error
from thranite.loader.hub_listing import Listing, RemoteFile, list_files
from thranite.loader.hub_transfer import fetch_file

LOCK = ".thranite-download.lock"
WORK = ".incomplete-"
MOVING = ".moving"
WORKERS = 8
IDLE_TRIES = 5  # tries in a row that bring no byte before giving up
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Download:
    """What is wanted. `token`: None takes HF_TOKEN or the file of a login."""

    model: str
    target: Path
    revision: str | None = None
    token: str | None = None


class Progress:
    """How far a download is; read by other threads while it runs."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.total_files = 0
        self.finished = False
        self._work: Path | None = None
        self._files: Sequence[RemoteFile] = ()

    def begin(self, work: Path, files: Sequence[RemoteFile]) -> None:
        self._work, self._files = work, files
        self.total_files, self.total_bytes = len(files), sum(file.size for file in files)

    def finish(self, marker: Marker) -> None:
        self.total_files, self.total_bytes = len(marker.files), sum(marker.files.values())
        self.finished = True

    @property
    def done_bytes(self) -> int:
        """Bytes on disk, those of files still growing included."""
        if self.finished or self._work is None:
            return self.total_bytes
        return min(_tree_bytes(self._work), self.total_bytes)

    @property
    def done_files(self) -> int:
        if self.finished or self._work is None:
            return self.total_files
        return sum(_complete(self._work, file) for file in self._files)


def download(wanted: Download, progress: Progress, say: Callable[[str], None]) -> Marker:
    """Fill `wanted.target`. Returns at once if it is complete. Raises StartupError."""
    try:
        wanted.target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{wanted.target} cannot be a directory: {error.strerror}", "name another one") from error
    with _lock(wanted.target, say):
        marker = _finished(wanted)
        if marker is None:
            listing = list_files(wanted.model, wanted.revision, wanted.token)
            marker = _fetch(wanted, listing, progress, say)
        progress.finish(marker)
        return marker


def _finished(wanted: Download) -> Marker | None:
    """The marker if the directory is complete. Raises ConfigError if it holds something else."""
    target, marker = wanted.target, read_marker(wanted.target)
    if marker is None:
        if (target / "config.json").exists() and not list(target.glob(f"{WORK}*")):
            raise ConfigError(f"{target} holds a model that this command did not put there", "name another directory")
        return None
    if (marker.model, marker.revision) != (wanted.model, wanted.revision):
        was, now = (f"{m} at {r or 'its default branch'}" for m, r in (
            (marker.model, marker.revision), (wanted.model, wanted.revision)))  # fmt: skip
        raise ConfigError(f"{target} holds {was}, not {now}", "name another directory, or empty this one")
    return marker if marker.holds_for(target) else None


def _fetch(wanted: Download, listing: Listing, progress: Progress, say: Callable[[str], None]) -> Marker:
    work = wanted.target / f"{WORK}{listing.commit[:12]}"
    work.mkdir(exist_ok=True)
    former = read_marker(wanted.target)
    known = (former is not None and former.commit == listing.commit) or (work / MOVING).exists()
    for file in listing.files:
        done = wanted.target / file.name
        if not (work / file.name).exists() and _holds(done, file, known):
            os.replace(done, work / file.name)
    progress.begin(work, listing.files)
    missing = [file for file in listing.files if not _complete(work, file)]
    _fetch_all(wanted, listing, missing, work, say)
    marker = Marker(wanted.model, wanted.revision, listing.commit, {file.name: file.size for file in listing.files})
    for stale in wanted.target.glob(f"{WORK}*/{MOVING}"):  # of a move that was never ended, and is undone from here on
        stale.unlink()
    (work / MOVING).touch()
    remove_marker(wanted.target)  # from here on files of two commits may lie side by side
    for file in listing.files:
        os.replace(work / file.name, wanted.target / file.name)
    marker.write(wanted.target)
    for stale in wanted.target.glob(f"{WORK}*"):
        shutil.rmtree(stale)
    return marker


def _fetch_all(
    wanted: Download, listing: Listing, files: list[RemoteFile], work: Path, say: Callable[[str], None]
) -> None:
    """Fetch until every file is complete; a try that brought bytes earns further tries."""
    tries = IDLE_TRIES
    while files:
        before = _tree_bytes(work)
        failure = _try_all(wanted, listing, files, work)
        files = [file for file in files if not _complete(work, file)]
        if not files:
            return
        error = failure or HubUnreachable(f"{files[0].name} came incomplete")
        tries = IDLE_TRIES if _tree_bytes(work) > before else tries - 1
        if not isinstance(error, HubUnreachable) or tries == 0:
            raise error
        say(f"{error.message}; trying again")
        time.sleep(RETRY_SECONDS)


def _try_all(wanted: Download, listing: Listing, files: list[RemoteFile], work: Path) -> StartupError | None:
    """One attempt at every file; the first failure, if any. An interrupt breaks off those under way."""
    stop = Event()

    def fetch(file: RemoteFile) -> StartupError | None:
        try:
            if not stop.is_set():
                fetch_file(wanted.model, listing.commit, file, work, wanted.token, stop)
        except Exception as error:  # noqa: BLE001 - the client's errors share no base; each becomes one message
            return hub_error(error, wanted.model, wanted.revision)
        return None

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="download") as pool:
        try:
            failures = [failure for failure in pool.map(fetch, files) if failure is not None]
        except BaseException:
            stop.set()
            raise
    return min(failures, key=lambda failure: isinstance(failure, HubUnreachable), default=None)  # a final one first


def _holds(path: Path, file: RemoteFile, known: bool) -> bool:
    """Whether it is that very file. `known`: of this commit, so its size tells that it is whole; one of another commit
    may have the same size."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if known:
        return True
    if file.sha256 is None:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _complete(work: Path, file: RemoteFile) -> bool:
    path = work / file.name
    return path.is_file() and path.stat().st_size == file.size


def _tree_bytes(root: Path) -> int:
    """Bytes of the files below `root`; files may move meanwhile."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue  # renamed between listing and asking
    return total


@contextmanager
def _lock(target: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One download a directory at a time; freed by the kernel if the process dies."""
    with (target / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process downloads to {target}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
