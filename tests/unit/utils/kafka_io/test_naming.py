"""What a pipeline with a name calls its topics, groups and transactional ids in Kafka."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.protocol.metadata import MetadataRequest

from tests.harness import Pipeline, until
from tests.unit.utils.kafka_io.test_exactly_once import join_group, poll_until_assigned
from utils import kafka_io
from utils.broker import Broker
from utils.kafka_io import KafkaUnavailable, Outgoing, Position, Sender, TopicPartition, log_scan
from utils.kafka_io.clients import open_admin
from utils.kafka_io.naming import Renaming, full_name, short_name
from utils.kafka_io.observer import Observer
from utils.messages import APP_MESSAGES, DEAD_LETTERS, GROUPS, PREDICTIONS, PREDICTOR_GROUP
from utils.settings import Kafka

NAMES = ("app_messages", "__consumer_offsets", "/app_messages", "/b.app_messages", "//x", "a.a")


@pytest.mark.parametrize("pipeline", ["", "a", "a.b"])
def test_full_names_are_distinct_and_lead_back(pipeline: str) -> None:
    full = [full_name(pipeline, name) for name in NAMES]
    assert len(set(full)) == len(NAMES)
    assert [short_name(pipeline, name) for name in full] == list(NAMES)


def test_names_of_other_pipelines_are_never_taken_for_own_ones() -> None:
    others = [full_name(other, "app_messages") for other in ("", "ab", "a.b", "b")]
    assert "app_messages" not in [short_name("a", name) for name in others]
    assert "b.app_messages" in [short_name("a", name) for name in others]


def test_request_that_is_sent_again_gets_its_name_once() -> None:
    request = MetadataRequest(topics=["app_messages"], version=9)
    for _ in range(2):
        renaming = Renaming(request, partial(full_name, "a"))
        assert [topic.name for topic in request.topics] == ["a.app_messages"]
        renaming.undo()
        assert request.topics == ["app_messages"]


@pytest.fixture
def named(empty_broker: Broker, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with a name, whose topics exist beside those of one without."""
    plain = Pipeline(tmp_path / "plain", empty_broker.bootstrap)
    kafka_io.ensure_topics(plain.settings.kafka, GROUPS)
    named = Pipeline(tmp_path / "named", empty_broker.bootstrap, PIPELINE_NAME="eu.fraud")
    created = kafka_io.ensure_topics(named.settings.kafka, GROUPS)
    assert created[0].startswith("topics created: eu.fraud.app_messages, ")
    yield named
    # Whatever was done with the name, the topics without one are as they were.
    for topic in (APP_MESSAGES, PREDICTIONS, DEAD_LETTERS):
        assert log_scan.bounds(plain.settings.kafka, topic) == {0: (0, 0)}


def test_kafka_sees_full_names_and_the_pipeline_short_ones(named: Pipeline) -> None:
    kafka, place = named.settings.kafka, TopicPartition(APP_MESSAGES, 0)
    with ExitStack() as resources:
        outside = KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
        resources.enter_context(closing(outside))
        observer = resources.enter_context(closing(Observer(kafka)))
        member = resources.enter_context(closing(join_group(named)))
        assert set(poll_until_assigned(member).restored or ()) == {
            TopicPartition(topic, 0) for topic in GROUPS[PREDICTOR_GROUP]
        }
        with Sender(kafka) as sender:
            sender.send(Outgoing(APP_MESSAGES, 0, None, b"{}")).get(10)
        deadline = time.monotonic() + 20
        while not (polled := member.poll(100)).records:
            assert time.monotonic() < deadline
        assert [record.topic for record in polled.records[place]] == [APP_MESSAGES]
        answer = {TopicPartition(PREDICTIONS, 0): [(None, b"{}", None)]}
        member.commit(polled, answer, {place: Position(1)})
        member.wait_for_commit()
        until(lambda: member.lag().get(place) == 0, 10)

        seen = observer.look(PREDICTOR_GROUP, GROUPS[PREDICTOR_GROUP])
        assert [one.instance_id for one in seen.members] == ["tester"]
        assert seen.committed[place].offset == 1 and seen.lag()[place] == 0
        check_full_names(outside)


def check_full_names(outside: KafkaAdminClient) -> None:
    """What another client sees."""
    group = outside.describe_groups(["eu.fraud.predictor"])["eu.fraud.predictor"]
    (member,) = group["members"]
    assert member["group_instance_id"] == "eu.fraud.tester"
    read = {"eu.fraud.app_messages", "eu.fraud.outcomes"}
    assert set(member["member_metadata"]["topics"]) == read
    assigned = member["member_assignment"]["assigned_partitions"]
    assert {one["topic"] for one in assigned} == read
    offsets = outside.list_group_offsets(["eu.fraud.predictor"])["eu.fraud.predictor"]
    assert {tp.topic for tp in offsets} == read
    names = {
        one.transactional_id for found in outside.list_transactions().values() for one in found
    }
    assert "eu.fraud.tester" in names  # others have used the short one on this broker


def test_settings_of_a_topic_are_those_of_the_full_name(named: Pipeline) -> None:
    kafka = named.settings.kafka
    with closing(open_admin(kafka)) as admin:
        assert not log_scan.is_compacted(kafka, PREDICTIONS)
        compact = {"cleanup.policy": "compact"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, PREDICTIONS, compact)])
    assert log_scan.is_compacted(kafka, PREDICTIONS)
    assert not log_scan.is_compacted(kafka.model_copy(update={"name": ""}), PREDICTIONS)


def test_lines_for_the_user_name_topics_in_full(empty_broker: Broker) -> None:
    kafka = Kafka(bootstrap_servers=empty_broker.bootstrap, name="eu.fraud")
    with pytest.raises(KafkaUnavailable, match=r"no topic eu\.fraud\.predictions: run initialize"):
        log_scan.bounds(kafka, PREDICTIONS)
    lines: list[str] = []
    kafka_io.wait_for_topics(
        kafka, [APP_MESSAGES], seconds=5, pause=lambda _: True, report=lines.append
    )
    assert lines == ["waiting for topic eu.fraud.app_messages (initialize.py creates it)"]
