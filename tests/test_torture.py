"""A short run of the torture test; `make torture` is the long one."""

from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import MakePipeline
from tests.harness import Pipeline
from tests.torture import ENVIRONMENT, Torture
from utils import kafka_io
from utils.broker import SHORT_LIVED, Broker
from utils.kafka_io import ExactlyOnce, Outgoing, Polled, TopicPartition
from utils.messages import GROUPS, PREDICTIONS, PREDICTOR_GROUP


@pytest.mark.timeout(300)
def test_nothing_is_lost_whatever_is_killed(
    make_pipeline: MakePipeline, own_broker: Broker, adult: list[dict[str, object]]
) -> None:
    pipeline = make_pipeline(**ENVIRONMENT)
    report = Torture(pipeline, own_broker, adult, seed=7).run(lambda kills: kills < 9)
    assert not report.faults, report.text()
    assert report.figures["messages"] > 500


def test_a_transaction_that_the_broker_forgot_is_not_committed_by_the_next_one(
    prepared: Path, tmp_path: Path
) -> None:
    """As after a restart in which a partition was not told that it was aborted."""
    forgetful = {"transaction.partition.verification.enable": "false"}
    with Broker(tmp_path / "broker", jvm=SHORT_LIVED, overrides=forgetful) as broker:
        pipeline = Pipeline(tmp_path, broker.bootstrap)
        pipeline.copy_of(prepared)
        with closing(joined(pipeline)) as exchange:
            producer = exchange._producer
            assert producer is not None
            producer.begin_transaction()
            tp = TopicPartition(PREDICTIONS, 0)
            producer.partitions_for(tp.topic)
            # The coordinator is told of nothing, so it will abort nothing.
            manager = producer._transaction_manager
            manager._partitions_in_transaction.add(tp)
            kafka_io._queue(producer, [Outgoing(PREDICTIONS, 0, b"half", b"done")])
            producer.flush(10)
        with closing(joined(pipeline)) as exchange:
            polled = Polled({})
            while not polled.epoch:
                polled = exchange.poll(100)
            exchange.commit(polled, [Outgoing(PREDICTIONS, 0, b"whole", b"{}")], {})
        assert [record.key for record in pipeline.records(PREDICTIONS)] == [b"whole"]


def joined(pipeline: Pipeline) -> ExactlyOnce:
    return ExactlyOnce(
        pipeline.settings.kafka,
        group=PREDICTOR_GROUP,
        topics=GROUPS[PREDICTOR_GROUP],
        slot="slot",
        max_records=10,
        report=print,
    )
