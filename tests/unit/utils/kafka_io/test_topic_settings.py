"""Which settings of topics weaken a promise."""

from utils.kafka_io.topic_settings import MAX_MESSAGE_BYTES, TopicSettings, weaknesses
from utils.messages import APP_MESSAGES, PREDICTIONS

SAFE = {
    "cleanup.policy": "delete",
    "max.message.bytes": str(MAX_MESSAGE_BYTES),
    "min.insync.replicas": "2",
    "retention.ms": "-1",
    "unclean.leader.election.enable": "false",
}
DAY = 86_400_000


def lines(replicas: int = 3, oldest: int | None = None, **changed: str) -> list[str]:
    values = SAFE | {name.replace("_", "."): value for name, value in changed.items()}
    found = {
        topic: TopicSettings(topic, f"shop.{topic}", replicas, values)
        for topic in (APP_MESSAGES, PREDICTIONS)
    }
    return weaknesses(found, {} if oldest is None else {APP_MESSAGES: oldest}, now=100 * DAY)


def test_safe_settings_have_no_line() -> None:
    assert lines() == lines(retention_ms=str(7 * DAY)) == []
    assert lines(oldest=94 * DAY, retention_ms=str(7 * DAY)) == []


def test_each_setting_that_weakens_a_promise_has_one_line() -> None:
    (line,) = lines(replicas=1)
    assert line.startswith(
        "shop.app_messages, shop.predictions: replication 1, so min.insync.replicas 1"
    )
    (line,) = lines(min_insync_replicas="1")
    assert line.startswith("shop.app_messages, shop.predictions: min.insync.replicas 1")
    (line,) = lines(cleanup_policy="compact,delete")
    assert "cleanup.policy compact" in line
    (line,) = lines(unclean_leader_election_enable="true")
    assert "unclean.leader.election.enable" in line
    (line,) = lines(oldest=90 * DAY, retention_ms=str(7 * DAY))
    assert line.startswith(
        "shop.app_messages: retention.ms of 7 days, shorter than what the message"
    )
    (line,) = lines(max_message_bytes=str(2**20))
    assert line.startswith("shop.predictions: takes records of up to 1,047,552 bytes")
    hidden = TopicSettings(APP_MESSAGES, APP_MESSAGES, 3, {})
    assert "may not see" in weaknesses({APP_MESSAGES: hidden}, {}, now=0)[0]


def test_smallest_limit_counts() -> None:
    assert TopicSettings("", "", 1, SAFE, largest_request=2**20).largest_record == 2**20 - 1024
    assert TopicSettings("", "", 1, {}).largest_record == 2**20 + 12 - 1024
