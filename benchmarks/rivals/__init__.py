"""The programs with which the pipeline is compared, written as their users would."""

from collections.abc import Iterable


def create_topics(bootstrap: str, names: Iterable[str]) -> None:
    """Create the rivals' topics with one partition each."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        topics = [NewTopic(name, num_partitions=1, replication_factor=1) for name in names]
        admin.create_topics(topics)
        admin.wait_for_topics([topic.name for topic in topics], timeout_ms=10_000)
    finally:
        admin.close()
