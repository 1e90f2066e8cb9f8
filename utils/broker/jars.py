"""Fetches Kafka's jars and verifies them.

The jars are pinned in jars.sha256 (`sha256sum` format, paths as in a Maven repository),
fetched once by jgo and verified at every start.
"""

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from utils.durable_files import try_lock
from utils.errors import UserError

VERSION = "4.4.0"
LOCK = Path(__file__).with_name("jars.sha256")

#: The pinned artifacts. Without "!" the second one would change Kafka's own version.
ENDPOINT = (
    f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.25.5!"
)


class BrokerError(UserError):
    """The broker cannot be fetched or started; its text is one line for the user."""


class Jar(NamedTuple):
    """A line of the lock file: a jar's SHA-256 and its path inside a Maven repository."""

    sha256: str
    path: str


def load_lock(lock: Path = LOCK) -> list[Jar]:
    """Read the lock file; its jars are in the order of the class path."""
    return [Jar(*line.split()) for line in lock.read_text("ascii").splitlines()]


def find_damaged(jars: Sequence[Jar], cache: Path) -> list[Jar]:
    """The jars that are missing in `cache` or do not match their SHA-256."""
    return [jar for jar in jars if _sha256(cache / jar.path) != jar.sha256]


def ensure_jars(cache: Path | None = None) -> list[Path]:
    """Fetch the pinned jars that are missing or damaged in `cache`.

    Args:
        cache: A Maven repository; by default jgo's: M2_REPO, else ~/.m2/repository.

    Returns:
        Kafka's class path.

    Raises:
        BrokerError: A jar cannot be fetched, or does not match its SHA-256.
    """
    cache = cache or _repository()
    jars = load_lock()
    if find_damaged(jars, cache):
        with _one_at_a_time(cache):
            if missing := find_damaged(jars, cache):  # another process may have fetched them
                _fetch(missing, cache)
    return [cache / jar.path for jar in jars]


def _repository() -> Path:
    try:
        return Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")
    except RuntimeError:
        raise BrokerError("there is no home folder for Kafka's jars: set M2_REPO") from None


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: at worst both processes fetch
            if not try_lock(lock):
                print(f"another process is fetching to {folder}: waiting for it", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _fetch(jars: Sequence[Jar], cache: Path) -> None:
    """Fetch jars into a temporary folder, and move each into `cache` once it is verified."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    console.print(f"fetching Apache Kafka {VERSION} to {cache}, once", highlight=False)
    mirrors = GlobalSettings.load().repositories or None  # [repositories] in jgo.conf
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as folder:
        context = MavenContext(repo_cache=Path(folder), remote_repos=mirrors)
        for jar in track(jars, "jars", console=console):
            *group, project, version, name = PurePosixPath(jar.path).parts
            artifact = context.project(".".join(group), project).at_version(version).artifact()
            fetched = Path(folder, jar.path)
            _fetch_with_retries(name, artifact.resolve, fetched)
            if _sha256(fetched) != jar.sha256:
                raise BrokerError(f"{name}: the fetched file is not what {LOCK.name} pins")
            (cache / jar.path).parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(cache / jar.path)


def _fetch_with_retries(name: str, fetch: Callable[[], Path], target: Path) -> None:
    import requests
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    dropped = retry_if_exception_type(requests.RequestException)
    retrying = Retrying(
        retry=dropped, stop=stop_after_attempt(4), wait=wait_exponential(0.5), reraise=True
    )
    try:
        for attempt in retrying:
            with attempt:
                target.unlink(missing_ok=True)  # a partial file of the previous attempt
                fetch()
    except requests.RequestException as error:
        raise BrokerError(
            f"cannot fetch {name}: the Maven repository does not answer ({type(error).__name__})"
        ) from None
    except RuntimeError as error:
        raise BrokerError(f"cannot fetch {name}: {error}") from None


def write_lock(lock: Path = LOCK) -> int:
    """Rewrite the lock file from ENDPOINT; returns the number of jars.

    To be run after a change of VERSION: the jars fetched here are trusted.
    """
    import jgo

    artifacts = jgo.resolve(ENDPOINT)
    with tempfile.TemporaryDirectory() as folder:
        artifacts[0].context.repo_cache = Path(folder)  # shared by all; fetches all again
        files = sorted(artifact.resolve() for artifact in artifacts)
        lines = [f"{_sha256(file)}  {file.relative_to(folder)}\n" for file in files]
    lock.write_text("".join(lines), "ascii")
    return len(lines)


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None
