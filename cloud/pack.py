"""Packs a bundle as SageMaker wants a model: model.tar.gz, unpacked into /opt/ml/model.

What is packed is a store of one bundle, which serves: the container opens it as any other store.
"""

import gzip
import io
import tarfile
from dataclasses import dataclass

from utils.durable_files import open_folder, read_plain
from utils.model_store import FEATURES, MANIFEST, MODEL, BundleError, ModelStore
from utils.model_store.bundle import LARGEST, disk_errors_as, to_pretty_json
from utils.model_store.manifest import Manifest
from utils.model_store.store import CURRENT

#: gzip's own default; text shrinks to a quarter, and a higher level gains 2 % in twice the time.
LEVEL = 6


@dataclass(frozen=True)
class Packed:
    """A packed bundle.

    Attributes:
        manifest: The bundle's manifest; its own SHA-256 covers the other files as well.
        content: The bytes of model.tar.gz.
    """

    manifest: Manifest
    content: bytes

    @property
    def model_id(self) -> int:
        """The bundle's number."""
        return self.manifest.model_id


def pack(store: ModelStore, model_id: int) -> Packed:
    """Verify a bundle and pack it; the same bundle gives the same bytes.

    Raises:
        BundleError: It is not there, or does not load.
        ModelStoreError: It cannot be read.
    """
    if model_id not in store.on_disk():
        raise BundleError(store.describe_missing(model_id))
    manifest = store.load(model_id).manifest
    with (
        disk_errors_as(f"cannot read bundle {model_id}"),
        open_folder(store.path / str(model_id)) as folder,
    ):
        names = (MODEL, FEATURES, MANIFEST)
        files = {f"{model_id}/{name}": read_plain(folder, name, LARGEST[name]) for name in names}
    files[CURRENT] = to_pretty_json({"model_id": model_id, "since": manifest.created})
    return Packed(manifest, gzip.compress(_tar(files), LEVEL, mtime=0))


def _tar(files: dict[str, bytes]) -> bytes:
    """An archive without times and owners, which differ from one machine to another."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            tar.addfile(entry, io.BytesIO(files[name]))
    return archive.getvalue()
