"""Reads the settings of topics, and says which of them weaken what the pipeline promises."""

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

from kafka import KafkaAdminClient
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from utils import messages
from utils.errors import one_line
from utils.kafka_io.clients import KafkaUnavailable, open_admin
from utils.kafka_io.naming import full_name, full_names
from utils.settings import Kafka

#: max.message.bytes of `predictions` and `dead_letters`. A prediction repeats its request_id
#: and a rejected record gains headers, so both can be larger than the original message.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
#: The topics that need it, and what follows if they do not have it.
LARGE = {
    messages.PREDICTIONS: "messages whose prediction would be larger are rejected",
    messages.DEAD_LETTERS: "of larger rejected records only the place is kept",
}
#: Kafka's default of max.message.bytes, for topics of which it is not known.
DEFAULT_MESSAGE_BYTES = 1024 * 1024 + 12
#: What a request takes besides one batch of records, and a batch besides a record, at most.
ENVELOPE_BYTES = 1024

#: The settings that are read, all of them with a default.
_NAMES = (
    "cleanup.policy",
    "max.message.bytes",
    "min.insync.replicas",
    "retention.ms",
    "unclean.leader.election.enable",
)
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class TopicSettings:
    """The settings of one topic.

    Attributes:
        topic: Its name in the pipeline.
        name: Its name in Kafka.
        replicas: Of the partition that has the fewest.
        values: By name, as Kafka writes them; empty if nobody may see them.
        largest_request: The most bytes of a request to the broker; None if nobody may see it.
    """

    topic: str
    name: str
    replicas: int
    values: Mapping[str, str]
    largest_request: int | None = None

    @property
    def is_compacted(self) -> bool:
        """Whether the broker may delete all but the newest record of each key."""
        return "compact" in self.values.get("cleanup.policy", "")

    @property
    def largest_record(self) -> int:
        """The most bytes of a record's key, value and headers."""
        limit = int(self.values.get("max.message.bytes", DEFAULT_MESSAGE_BYTES))
        return min(limit, self.largest_request or limit) - ENVELOPE_BYTES


def read_settings(kafka: Kafka, topics: Iterable[str]) -> dict[str, TopicSettings]:
    """The settings of those of the topics that exist.

    Raises:
        KafkaUnavailable: No broker answers, or a topic may not be seen.
    """
    wanted = sorted(topics)
    try:
        with closing(open_admin(kafka)) as admin:
            described = admin.describe_topics(wanted)
            values = _values(admin, ConfigResourceType.TOPIC, wanted, _NAMES)
            largest = _largest_request(admin)
    except KafkaError as error:
        names = full_names(kafka.name, wanted)
        raise KafkaUnavailable(f"{names} cannot be seen: {one_line(error)}") from None
    return {
        topic["name"]: TopicSettings(
            topic["name"],
            full_name(kafka.name, topic["name"]),
            min(len(partition["replica_nodes"]) for partition in topic["partitions"]),
            values.get(topic["name"], {}),
            largest,
        )
        for topic in described
        if topic["partitions"]
    }


def broker_setting(admin: KafkaAdminClient, name: str) -> str | None:
    """A setting of the brokers; None if this user may not see it."""
    node = str(admin.describe_cluster()["brokers"][0]["broker_id"])
    return _values(admin, ConfigResourceType.BROKER, [node], [name]).get(node, {}).get(name)


def _largest_request(admin: KafkaAdminClient) -> int | None:
    found = broker_setting(admin, "socket.request.max.bytes")
    return int(found) if found else None


def _values(
    admin: KafkaAdminClient,
    kind: ConfigResourceType,
    resources: Iterable[str],
    names: Iterable[str],
) -> dict[str, dict[str, str]]:
    """By resource, the values that this user may see."""
    wanted = [ConfigResource(kind, each, configs=dict.fromkeys(names)) for each in resources]
    # Not only what the topic overrides: the broker's default may be what weakens it. What this user
    # may not see is left out, without an error.
    found = admin.describe_configs(wanted, config_filter=ConfigFilterType.ALL)
    return {
        resource: {name: one["value"] for name, one in configs.items() if one["value"] is not None}
        for resource, configs in found.get(kind.name.lower(), {}).items()
    }


def weaknesses(
    found: Mapping[str, TopicSettings], oldest: Mapping[str, int], now: int
) -> list[str]:
    """Which settings weaken a promise, one line of text for the user each.

    Args:
        found: The settings, by topic.
        oldest: By topic, the timestamp of the oldest record that the message store has read.
        now: The time. Like timestamps, in milliseconds since 1970.
    """
    lines: dict[str, list[str]] = {}

    def note(line: str, name: str) -> None:
        lines.setdefault(line, []).append(name)

    for topic, one in found.items():
        value = one.values.get
        if not one.values:
            note("this user may not see the settings (DescribeConfigs)", one.name)
        if one.replicas == 1:
            note("replication 1, so min.insync.replicas 1: what its broker loses is lost", one.name)
        elif value("min.insync.replicas") == "1":
            note("min.insync.replicas 1: what one broker takes and then loses is lost", one.name)
        if value("unclean.leader.election.enable") == "true":
            note("unclean.leader.election.enable: acknowledged records may be lost", one.name)
        if one.is_compacted:
            note("cleanup.policy compact: older records of the same key are deleted", one.name)
        kept = int(value("retention.ms", "-1"))
        if 0 <= kept < now - oldest.get(topic, now):
            days = f"{kept / _DAY_MS:.3g} days, shorter than what the message store has read"
            note(f"retention.ms of {days}: if the store is lost, the older part is", one.name)
    limited = filter(None, map(describe_limit, found.values()))
    return [*(f"{', '.join(names)}: {line}" for line, names in lines.items()), *limited]


def describe_limit(settings: TopicSettings) -> str:
    """What follows if a topic takes smaller records than it should; empty if it does not."""
    topic, largest = settings.topic, settings.largest_record
    if topic not in LARGE or largest >= MAX_MESSAGE_BYTES - ENVELOPE_BYTES:
        return ""
    return (
        f"{settings.name}: takes records of up to {largest:,} bytes (max.message.bytes, "
        f"socket.request.max.bytes): {LARGE[topic]}"
    )
