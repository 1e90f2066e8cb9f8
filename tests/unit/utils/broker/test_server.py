"""The broker that users, tests and the demo start, with real Java, sockets and signals."""

import os
import re
import signal
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from tests.harness import listening_addresses
from tests.unit.utils.broker.processes import gone_within
from utils.broker import (
    Broker,
    BrokerError,
    free_port,
    is_answering,
)

pytestmark = pytest.mark.timeout(150)  # most tests start a broker of their own


def topics(bootstrap: str) -> list[str]:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        return list(admin.list_topics())
    finally:
        admin.close()


def create_topic(bootstrap: str, name: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        admin.create_topics([NewTopic(name=name, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()


def memory_maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_broker_listens_on_loopback_only(broker: Broker) -> None:
    addresses = listening_addresses(broker.pid)
    assert len(addresses) == 2  # for clients and for the controller
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}


def test_topics_survive_a_stop_and_a_kill(tmp_path: Path) -> None:
    home = tmp_path / "hôme, with a space"
    with Broker(home) as first:
        create_topic(first.bootstrap, "kept")
        with pytest.raises(BrokerError, match="another broker is using"):
            Broker(home).start()
    assert gone_within(0.1, first.pid) and not is_answering(first.bootstrap)
    with Broker(home) as second:
        assert topics(second.bootstrap) == ["kept"]
        assert re.search(r"/kafka-\w+\.aot$", memory_maps(second.pid), re.M)  # written by the first
        bootstrap, killed = second.bootstrap, second.pid
        os.kill(killed, signal.SIGKILL)  # from outside, as fault injection does
        second.start()
        assert second.bootstrap == bootstrap and second.pid != killed
        assert topics(bootstrap) == ["kept"]


def test_broker_can_require_a_login(tmp_path: Path) -> None:
    port = free_port()
    overrides = {
        "listeners": f"SASL_PLAINTEXT://127.0.0.1:{port}",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
    }
    with Broker(tmp_path, overrides=overrides, scram={"ann": "secret"}):
        assert is_answering(f"localhost:{port}")
        client = KafkaAdminClient(
            bootstrap_servers=f"127.0.0.1:{port}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_plain_username="ann",
            sasl_plain_password="secret",
        )
        assert list(client.list_topics()) == []
        client.close()


def test_failed_start_gives_the_reason_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(BrokerError, match=r"No readable meta\.properties.*broker\.log") as failure:
        Broker(tmp_path).start()
    assert "\n" not in str(failure.value)
    with pytest.raises(BrokerError, match="Unrecognized VM option 'Nonsense'") as failure:
        Broker(tmp_path, jvm=["-XX:+Nonsense"]).start()
    assert "\n" not in str(failure.value)
