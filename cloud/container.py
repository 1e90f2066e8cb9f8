"""The folders of a container as SageMaker lays them out.

input/config/hyperparameters.json     what to learn, all values as text
input/config/inputdataconfig.json     the channels
input/config/resourceconfig.json      the machines of a training job
input/data/<channel>/                 the files of a channel
model/                                the bundles, as in models/
output/failure                        why a training job failed, one line
output/data/                          what else a training job leaves
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from utils.errors import UserError
from utils.settings import Settings

#: SageMaker shows so many characters of `output/failure`.
MAX_FAILURE = 1024


@dataclass(frozen=True)
class Container:
    """The folders under the base folder, which is /opt/ml in SageMaker."""

    base: Path

    @classmethod
    def of(cls, settings: Settings) -> "Container":
        """The container of the settings."""
        return cls(settings.sagemaker.base_dir.absolute())

    @property
    def config(self) -> Path:
        """The folder of the files that describe a training job."""
        return self.base / "input" / "config"

    @property
    def channels(self) -> Path:
        """The folder with a folder for each channel."""
        return self.base / "input" / "data"

    @property
    def model(self) -> Path:
        """The folder of the bundles."""
        return self.base / "model"

    @property
    def output_data(self) -> Path:
        """The folder of what a training job leaves besides the model."""
        return self.base / "output" / "data"

    @property
    def failure(self) -> Path:
        """The file that says why a training job failed."""
        return self.base / "output" / "failure"

    def write_failure(self, text: str) -> None:
        """Write why a training job failed.

        Raises:
            OSError: The file cannot be written.
        """
        self.failure.parent.mkdir(parents=True, exist_ok=True)
        self.failure.write_text(" ".join(text.split())[:MAX_FAILURE] + "\n", "utf-8")


class ContainerSettings(Settings):
    """Settings whose bundles are those of the container; everything else is in the home."""

    @property
    def models_dir(self) -> Path:
        """The folder of the bundles and `current.json`."""
        return Container.of(self).model.resolve()  # a store refuses a folder that is a link

    @classmethod
    def of(cls, settings: Settings, **changes: object) -> "ContainerSettings":
        """The settings of a container.

        Args:
            settings: The settings of pipeline.toml and the environment.
            changes: The settings that differ, by their names; they are not checked again.
        """
        return cls.model_construct(**{**dict(settings), **changes})


def read_config(path: Path) -> dict[str, object]:
    """Read a file that describes the job; an empty one if it is not there.

    Raises:
        UserError: The file cannot be read, or is no JSON object.
    """
    try:
        return msgspec.json.decode(path.read_bytes() or b"{}", type=dict[str, object])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no JSON object: {error}") from None
