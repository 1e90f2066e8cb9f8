"""The folder of a training job, for the tests of python -m cloud."""

import json
import random
from pathlib import Path

HEADER = "code;visits;region;bought\n"
#: What a job of these rows needs at least.
HYPERPARAMETERS = {"target": "bought", "positive": "yes", "separator": ";", "evals": "1"}


def rows(count: int, seed: int = 1) -> str:
    """Rows of shops' customers, with a header; codes begin with zeros."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        visits, region = draw.randint(0, 40), draw.choice(["north", "south", "east"])
        share = 0.1 + 0.02 * visits - 0.2 * (region == "north")
        bought = "yes" if draw.random() < share else "no"
        lines.append(f"{draw.randint(1, 9):03d};{visits};{region};{bought}\n")
    return HEADER + "".join(lines)


def write_job(base: Path, train: dict[str, str], validation: str = "", **sent: str) -> Path:
    """Write a job's folder as SageMaker does.

    Args:
        base: The folder.
        train: The channel's files by name.
        validation: The channel's file; there is no such channel without one.
        sent: Hyperparameters beside, or in place of, `HYPERPARAMETERS`.
    """
    contents = {"train": train, "validation": {"rows.csv": validation} if validation else {}}
    channels = {name: files for name, files in contents.items() if files}
    for channel, files in channels.items():
        (base / "input/data" / channel).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (base / "input/data" / channel / name).write_text(text)
    described = {
        "ContentType": "text/csv",
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    for name, value in (
        ("hyperparameters", {**HYPERPARAMETERS, **sent}),
        ("inputdataconfig", dict.fromkeys(channels, described)),
        ("resourceconfig", {"current_host": "algo-1", "hosts": ["algo-1"]}),
    ):
        path = base / "input/config" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return base
