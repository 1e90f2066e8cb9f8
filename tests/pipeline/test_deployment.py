"""A trainer whose models go to a SageMaker endpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakePipeline
from tests.harness import until
from tests.unit.cloud.fake_aws import SECTION, FakeAws, with_sagemaker

Row = dict[str, Any]


@pytest.fixture
def aws() -> Iterator[FakeAws]:
    running = FakeAws()
    yield running
    running.close()


def test_deployment_holds_up_neither_training_nor_end_and_the_next_one_finishes_it(
    make_pipeline: MakePipeline,
    adult: list[Row],
    aws: FakeAws,
    prepared_home: Path,
    tmp_path: Path,
) -> None:
    prepared = (prepared_home / "pipeline.toml").read_text("utf-8")
    config = tmp_path / "with_endpoint.toml"
    config.write_text(with_sagemaker(prepared, **SECTION), "utf-8")
    pipeline = make_pipeline(PIPELINE_CONFIG=str(config), **aws.environment)
    pipeline.start("predictor.py")
    aws.script.looks = 10**6  # the endpoint never serves
    trainer = pipeline.start("trainer.py", "--evals", "1")
    until(lambda: "CreateEndpoint" in aws.calls, 30, trainer.text)
    pipeline.send_rows(adult[:25])
    (completed,) = pipeline.wait_for_events("training_completed", 1)
    assert trainer.end() == 0
    unfinished = "the deployment of model 1 is not finished: "
    assert f"{unfinished}cloud: interrupted: endpoint adult is Creating" in trainer.text()
    aws.finish_change("adult")
    trainer = pipeline.start("trainer.py", "--evals", "1")
    serving = 2 if completed["accepted"] else 1
    trainer.says(f"deployed: endpoint adult serves model {serving}")
    assert aws.serving("adult")["champion"].startswith(f"adult-{serving}-")
    assert trainer.end() == 0
