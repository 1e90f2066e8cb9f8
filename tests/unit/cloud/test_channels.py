"""The channels of a training job: which files it has, and how several become one."""

import json
import os
from pathlib import Path

import pytest

from cloud.channels import Channel, join, read_channels
from cloud.container import Container
from utils.data_set import DataError, read_data
from utils.errors import UserError
from utils.settings import Data

DATA = Data(train="train.csv", target="y")


@pytest.fixture
def container(tmp_path: Path) -> Container:
    made = Container(tmp_path / "ml")
    made.config.mkdir(parents=True)
    (made.channels / "train").mkdir(parents=True)
    (made.channels / "train" / "a.csv").write_text("x,y\n1,no\n")
    return made


def describe(container: Container, **channels: object) -> None:
    (container.config / "inputdataconfig.json").write_text(json.dumps(channels))


def test_files_are_in_the_order_of_their_names(container: Container) -> None:
    train = container.channels / "train"
    for name in ("c.csv", "b/2.csv", "b/1.csv", "_SUCCESS", ".hidden.csv", "empty.csv"):
        (train / name).parent.mkdir(exist_ok=True)
        (train / name).write_text("" if name in ("_SUCCESS", "empty.csv") else "x,y\n1,no\n")
    found, validation = read_channels(container)
    names = [str(path.relative_to(train)) for path in found.files]
    assert names == ["a.csv", "b/1.csv", "b/2.csv", "c.csv"]
    assert [path.name for path in found.skipped] == [".hidden.csv", "_SUCCESS", "empty.csv"]
    assert validation is None


def test_validation_is_there_if_it_has_a_folder_or_a_description(container: Container) -> None:
    (container.channels / "validation").mkdir()
    with pytest.raises(UserError, match="channel validation has no files with rows in"):
        read_channels(container)
    (container.channels / "validation" / "v.csv").write_text("x,y\n")
    validation = read_channels(container)[1]
    assert validation is not None and [path.name for path in validation.files] == ["v.csv"]


def test_description_may_be_sagemakers(container: Container) -> None:
    described = {
        "ContentType": "text/csv; charset=utf-8",
        "TrainingInputMode": "FastFile",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    describe(container, train=described)
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
    (container.config / "resourceconfig.json").write_text(json.dumps(hosts))
    assert len(read_channels(container)[0].files) == 1


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"train": {"ContentType": "application/x-parquet"}}, "'application/x-parquet': text/csv"),
        ({"train": {"TrainingInputMode": "Pipe"}}, "input mode 'Pipe': File and FastFile are"),
        ({"train": {"RecordWrapperType": "RecordIO"}}, "record wrapper 'RecordIO'"),
        ({"train": ["text/csv"]}, "channel train is described by ['text/csv']"),
        ({"test": {}}, "channel 'test' is unknown: the channels are train and validation"),
        ({"train": {}, "validation": {}}, "channel validation has no files with rows"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_channels_are_refused(container: Container, described: object, said: str) -> None:
    (container.config / "inputdataconfig.json").write_text(json.dumps(described))
    with pytest.raises(UserError) as caught:
        read_channels(container)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_folder_is_refused(container: Container) -> None:
    (container.channels / "validate").mkdir()
    with pytest.raises(UserError, match="channel 'validate' is unknown"):
        read_channels(container)


def test_files_to_learn_from_are_required(tmp_path: Path) -> None:
    container = Container(tmp_path / "ml")
    with pytest.raises(UserError, match=r"the channel train is missing: there is no .*data/train"):
        read_channels(container)
    (container.channels / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="channel train has no files with rows"):
        read_channels(container)


def test_several_machines_are_refused(container: Container) -> None:
    (container.config / "resourceconfig.json").write_text('{"hosts": ["algo-1", "algo-2"]}')
    with pytest.raises(UserError, match="the job has 2 instances: the training runs on one"):
        read_channels(container)


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "\xff"])
def test_description_that_is_no_json_object_is_one_line(container: Container, text: str) -> None:
    (container.config / "inputdataconfig.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"inputdataconfig\.json is no JSON object") as caught:
        read_channels(container)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.geteuid(), reason="root reads everything")
def test_unreadable_description_is_one_line(container: Container) -> None:
    describe(container)
    (container.config / "inputdataconfig.json").chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        read_channels(container)


def joined(folder: Path, *contents: str, data: Data = DATA) -> Path:
    files = []
    for number, content in enumerate(contents):
        files.append(folder / f"{number}.csv")
        files[-1].write_bytes(content.encode(data.encoding))
    join(Channel("train", tuple(files)), data, folder / "train.csv")
    return folder / "train.csv"


def test_single_file_stays_as_it_is(tmp_path: Path) -> None:
    path = joined(tmp_path, "x,y\r\n1,no\r\n")
    assert path.read_bytes() == b"x,y\r\n1,no\r\n" and path.is_symlink()


def test_header_is_there_once(tmp_path: Path) -> None:
    path = joined(tmp_path, "x,y\n1,no", "\ufeffx, y \n2,yes\n", "\n\nx,y\n", "x,y\r\n3,no\r\n")
    assert path.read_text() == "x,y\n1,no\n2,yes\n3,no\n"
    frame = read_data(path, DATA).frame
    assert frame["x"].tolist() == [1, 2, 3] and frame["y"].tolist() == ["no", "yes", "no"]


def test_header_may_have_several_lines_and_comments_before_it(tmp_path: Path) -> None:
    data = DATA.model_copy(update={"comment": "#", "separator": ";"})
    header = '# made by hand\n"long\nname";y\n'
    path = joined(tmp_path, header + "1;no\n", header + "# a\n2;yes\n", data=data)
    assert path.read_text() == '"long\nname";y\n1;no\n2;yes\n'


def test_files_without_header_follow_each_other(tmp_path: Path) -> None:
    data = DATA.model_copy(update={"columns": ("x", "y"), "encoding": "utf-16"})
    path = joined(tmp_path, "1,no\n", "2,ja\n", data=data)
    assert path.read_text("utf-16") == "1,no\n2,ja\n"
    assert read_data(path, data).frame["y"].tolist() == ["no", "ja"]


def test_another_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.csv has another header than .*0\.csv: .*'2'"):
        joined(tmp_path, "x,y\n1,no\n", "2,yes\n")


def test_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("x,y\n1,no\n")
    (tmp_path / "1.csv").write_bytes("x,y\n2,né\n".encode("cp1252"))
    channel = Channel("train", (tmp_path / "0.csv", tmp_path / "1.csv"))
    with pytest.raises(DataError, match=r"1\.csv is not utf-8; set \[data\] encoding to 'cp1252'"):
        join(channel, DATA, tmp_path / "train.csv")
