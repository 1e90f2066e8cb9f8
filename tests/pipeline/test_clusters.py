"""A cluster that others run: Kafka's own limits, every codec, rules of access."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    NewTopic,
    ResourcePattern,
    ResourceType,
)
from kafka.errors import InvalidReplicationFactorError

from tests.harness import Pipeline, until
from utils.broker import Broker
from utils.kafka_io import topics
from utils.kafka_io.clients import open_consumer
from utils.messages import (
    APP_MESSAGES,
    CO_PARTITIONED,
    DEAD_LETTERS,
    OUTCOMES,
    PREDICTIONS,
    RETRAIN_TOPIC,
    TOPICS,
)

Row = dict[str, Any]
MIB = 2**20
CODECS = ("gzip", "snappy", "lz4", "zstd")

#: Kafka's defaults, where our own broker has others; its smallest request limit that others have;
#: and everybody may do everything until a rule says otherwise.
PROPERTIES = {
    "group.min.session.timeout.ms": "6000",
    "socket.request.max.bytes": str(MIB),
    "log.retention.ms": "604800000",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("foreign"), overrides=PROPERTIES) as running:
        yield running


def message(request_id: str, **data: Any) -> bytes:
    return json.dumps({"request_id": request_id, "data": data}).encode()


@pytest.mark.timeout(200)
def test_pipeline_runs_on_a_cluster_of_others(
    foreign: Broker, prepared_home: Path, adult: list[Row], tmp_path: Path
) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=foreign.bootstrap)) as admin:
        made = dict.fromkeys(CO_PARTITIONED, 4) | {RETRAIN_TOPIC: 1, DEAD_LETTERS: 1}
        admin.create_topics([NewTopic(topic, count, 1) for topic, count in made.items()])
    config = tmp_path / "pipeline.toml"
    config.write_text(
        Path("pipeline.toml").read_text().replace('compression = "none"', 'compression = "zstd"')
    )
    pipeline = Pipeline(
        tmp_path / "home", foreign.bootstrap, PIPELINE_CONFIG=str(config), RETRAIN_EVERY="100000"
    )
    pipeline.home.mkdir()
    try:
        pipeline.copy_files(prepared_home)
        shown = pipeline.run("initialize.py")
        assert shown.returncode == 0, shown.stderr
        weak = [line for line in shown.stdout.splitlines() if "replication 1" in line]
        assert len(weak) == 1
        assert all(topic in weak[0] for topic in TOPICS)
        assert "predictions: takes records of up to 1,047,5" in shown.stdout

        predictor, trainer = pipeline.start("predictor.py"), pipeline.start("trainer.py")
        predictor.says("serves partitions [0, 1, 2, 3]")
        long_ago = int(time.time() * 1000) - 30 * 86_400_000
        pipeline.send([(APP_MESSAGES, None, message("old", age=39))], timestamp=long_ago)
        sent, bad = send_in_all_codecs(foreign.bootstrap, adult)
        sent.insert(0, (0, "old"))
        answers = pipeline.wait_for_records(PREDICTIONS, len(sent), timeout=60)
        by_partition: dict[int, list[str]] = {}
        for answer in answers:
            found = by_partition.setdefault(answer.partition, [])
            found.append(json.loads(answer.value)["request_id"])
        for partition, ids in by_partition.items():
            assert ids == [name for place, name in sent if place == partition]
        letters = pipeline.wait_for_records(DEAD_LETTERS, bad)
        reasons = sorted(dict(letter.headers)["reason"].decode() for letter in letters)
        assert reasons[0].startswith("more than 33554432 bytes once it is decompressed")
        assert "the prediction would be larger than predictions takes" in " ".join(reasons)
        assert 4 in codecs_of(pipeline, PREDICTIONS) <= {0, 4}  # a single small one gains nothing

        for script in (predictor, trainer):
            assert script.text().count("the broker allows no session under 6 s") == 1
            assert "waiting" not in script.text()
        until(lambda: pipeline.stored_messages() >= len(sent), 60)
        shown = pipeline.run("initialize.py")
        kept = "retention.ms of 7 days, shorter than what the message store has read"
        assert f"app_messages: {kept}" in shown.stdout

        # With a rule for a topic all else is forbidden there; waiting would not help.
        forbid(foreign.bootstrap, PREDICTIONS, ACLOperation.WRITE)
        pipeline.send([(APP_MESSAGES, None, message("too late", age=39))])
        for script in (predictor, trainer):
            assert script.process.wait(30) == 1
            assert ": this user may not use a topic: grant" in script.text().splitlines()[-1]
            assert "Traceback" not in script.text()
    finally:
        pipeline.close()


def send_in_all_codecs(bootstrap: str, rows: list[Row]) -> tuple[list[tuple[int, str]], int]:
    """Send messages and outcomes; returns partition and id of each good message, and the bad ones.

    They go to four partitions at once, more than fit into one request.
    """
    sent, bad, limits = [], 0, {"max_request_size": 300 * MIB, "batch_size": 200_000}
    for codec in (None, *CODECS):
        producer = KafkaProducer(
            bootstrap_servers=bootstrap, compression_type=codec, linger_ms=50, **limits
        )
        producer._sender.config["max_request_size"] = 900_000
        with closing(producer):
            for number, row in enumerate(rows[:200]):
                name, partition = f"{codec}-{number}", number % 4
                padding = {"padding": "x" * 3_000}
                producer.send(APP_MESSAGES, message(name, **row, **padding), partition=partition)
                outcome = {"request_id": name, "outcome": row["income_bracket"]}
                producer.send(OUTCOMES, json.dumps(outcome).encode(), partition=partition)
                sent.append((partition, name))
            if codec in ("lz4", "zstd"):
                producer.send(APP_MESSAGES, bytes(100 * MIB), partition=0)
                producer.send(APP_MESSAGES, message("x" * 600_000, age=39), partition=1)
                bad += 2
            producer.flush()
    return sent, bad


def codecs_of(pipeline: Pipeline, topic: str) -> set[int]:
    """The codecs of the batches of a topic."""
    found = set()
    consumer = open_consumer(pipeline.settings.kafka, auto_offset_reset="earliest")
    parts = consumer._fetcher.PartitionRecords

    class Watched(parts):  # type: ignore[misc, valid-type]
        def _is_hidden(self, batch: Any) -> bool:
            if not batch.is_control_batch:
                found.add(batch.compression_type)
            return bool(super()._is_hidden(batch))

    consumer._fetcher.PartitionRecords = Watched
    with closing(consumer):
        consumer.assign([TopicPartition(topic, number) for number in range(4)])
        consumer.seek_to_beginning()
        for _ in range(100):
            if consumer.poll(100):
                break
    return found


def forbid(bootstrap: str, topic: str, operation: ACLOperation) -> None:
    pattern = ResourcePattern(ResourceType.TOPIC, topic)
    everybody = "User:ANONYMOUS"
    rule = ACL(everybody, "*", operation, ACLPermissionType.DENY, pattern)
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.create_acls([rule])


def test_topic_is_created_without_what_the_cluster_refuses(empty_broker: Broker) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=empty_broker.bootstrap)) as admin:
        refused = NewTopic("refused", 2, 1, topic_configs={"max.message.bytes": "-5"})
        done = topics._create(admin, [refused, NewTopic("plain", 1, 1)], str)
        assert done[0] == "topics created: refused, plain"
        assert done[1].startswith("refused: the cluster does not let max.message.bytes be set")
        assert {"refused", "plain"} <= {*admin.list_topics()}
        assert topics._create(admin, [NewTopic("plain", 1, 1)], str)  # by another process: no error
        with pytest.raises(InvalidReplicationFactorError):
            topics._create(admin, [NewTopic("nowhere", 1, 7)], str)
