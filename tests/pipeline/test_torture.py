"""A short run of the torture test; `make torture` is the long one."""

import pytest

from tests.conftest import MakePipeline
from tests.tools.torture import ENVIRONMENT, Torture
from utils.broker import Broker


@pytest.mark.timeout(300)
def test_short_torture_run_finds_no_fault(
    make_pipeline: MakePipeline, empty_broker: Broker, adult: list[dict[str, object]]
) -> None:
    pipeline = make_pipeline(**ENVIRONMENT)
    # Slower than `make torture`, which uses two cores: other tests run at the same time.
    torture = Torture(pipeline, empty_broker, adult, seed=7, rate=40.0)
    report = torture.run(lambda kills: kills < 12)  # each kind of kill once
    assert not report.faults, report.text()
    assert report.figures["messages"] > 500
