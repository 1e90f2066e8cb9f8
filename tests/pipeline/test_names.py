"""Several pipelines on one cluster: one of them may do only what its prefix allows."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

from tests.harness import Pipeline
from utils import kafka_io
from utils.broker import Broker, free_port
from utils.messages import (
    APP_MESSAGES,
    CO_PARTITIONED,
    DEAD_LETTERS,
    GROUPS,
    PREDICTIONS,
    RETRAIN_TOPIC,
)

NAME, USER, PASSWORD = "eu.fraud", "fraud", "ScramWord"
TOPICS = (*CO_PARTITIONED, DEAD_LETTERS, RETRAIN_TOPIC)
#: What README.md says that a user needs whose pipeline has a name.
GRANTS = {
    ResourceType.TOPIC: ("CREATE", "ALTER", "READ", "WRITE", "DESCRIBE_CONFIGS"),
    ResourceType.GROUP: ("READ",),
    ResourceType.TRANSACTIONAL_ID: ("WRITE",),
}


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Broker]:
    """A broker with ACLs: whoever logs in may do what is granted, all others everything."""
    listener = f"127.0.0.1:{free_port()}"
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    overrides = {
        "listeners": f"SASL_PLAINTEXT://{listener}",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": login,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    folder = tmp_path / "broker"
    with Broker(folder, overrides=overrides, scram={USER: PASSWORD}) as broker:
        grant_by_prefix(broker)
        yield broker


def grant_by_prefix(broker: Broker) -> None:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        made = admin.create_acls(
            [
                ACL(
                    f"User:{USER}",
                    "*",
                    ACLOperation[operation],
                    ACLPermissionType.ALLOW,
                    ResourcePattern(resource, f"{NAME}.", ACLResourcePatternType.PREFIXED),
                )
                for resource, operations in GRANTS.items()
                for operation in operations
            ]
        )
        assert not made["failed"]


def login_address(broker: Broker) -> str:
    (line,) = [
        line
        for line in (broker.home / "server.properties").read_text().splitlines()
        if line.startswith("listeners")
    ]
    return line.rpartition("SASL_PLAINTEXT://")[2].strip()


@pytest.fixture
def pipelines(secured: Broker, prepared_home: Path, tmp_path: Path) -> Iterator[list[Pipeline]]:
    """Three pipelines: with a name and few rights, with another name, and without one."""
    login = {
        "PIPELINE_NAME": NAME,
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": USER,
        "KAFKA_SASL_PASSWORD": PASSWORD,
    }
    made = []
    for folder, bootstrap, environment in (
        ("eu", login_address(secured), login),
        ("us", secured.bootstrap, {"PIPELINE_NAME": "us"}),
        ("plain", secured.bootstrap, {}),
    ):
        pipeline = Pipeline(tmp_path / folder, bootstrap, **environment)
        pipeline.copy_files(prepared_home)
        (pipeline.home / "data" / "home.json").unlink()  # each is a home of its own
        made.append(pipeline)
    yield made
    for pipeline in made:
        pipeline.close()


@pytest.mark.timeout(300)  # a broker, four scripts and a training
def test_pipelines_share_a_cluster(
    secured: Broker, pipelines: list[Pipeline], adult: list[dict[str, Any]]
) -> None:
    eu, us, plain = pipelines
    done = eu.run("initialize.py")
    assert done.returncode == 0, done.stderr
    assert f"topics created: {NAME}.app_messages" in done.stdout
    for other in (us, plain):
        kafka_io.ensure_topics(other.settings.kafka, GROUPS)
    predictors = [pipeline.start("predictor.py") for pipeline in pipelines]
    trainer = eu.start("trainer.py", "--evals", "1")
    trainer.says("ready", 60)
    ids = {pipeline: pipeline.send_rows(adult[:30], pipeline.home.name) for pipeline in pipelines}
    eu.send([(APP_MESSAGES, b"bad", b"{")])
    for pipeline in pipelines:
        answers = pipeline.wait_for(PREDICTIONS, 30)
        assert [answer["request_id"] for answer in answers] == ids[pipeline]
        assert len(pipeline.events("retrain")) == 1
    (trained,) = eu.wait_for_events("training_completed", 1, timeout=120)
    assert trained["batch_id"] == "app_messages-0-0"  # names in records are short
    check_commands(eu, ids[eu][0])
    check_names(secured)
    for other in (us, plain):
        assert not other.events("training_completed") and not other.records(DEAD_LETTERS)
    check_homes(eu, plain)
    assert [script.end() for script in (*predictors, trainer)] == [0] * 4


def check_commands(pipeline: Pipeline, request_id: str) -> None:
    for command, text in (
        (["list"], "serving"),
        (["report"], "model 2"),
        (["why", request_id], request_id),
        (["replay"], "30"),
        (["dead-letters", "list"], "app_messages-0 30"),
    ):
        done = pipeline.run("-m", "ops", *command)
        assert done.returncode == 0 and text in done.stdout, done.stdout + done.stderr
    repaired = pipeline.home / "repaired.json"
    repaired.write_text('{"request_id": "repaired", "data": {"age": 39}}')
    again = pipeline.run("-m", "ops", "dead-letters", "resend", "0", "--value", str(repaired))
    assert again.returncode == 0, again.stderr
    assert pipeline.wait_for(PREDICTIONS, 31)[-1]["request_id"] == "repaired"


def check_names(broker: Broker) -> None:
    """What other clients see of the three pipelines."""
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        prefixes = (f"{NAME}.", "us.", "")
        topics = {f"{prefix}{topic}" for prefix in prefixes for topic in TOPICS}
        assert {name for name in admin.list_topics() if not name.startswith("__")} == topics
        groups = {f"{prefix}{group}" for prefix in prefixes for group in GROUPS}
        assert {group["group_id"] for group in admin.list_groups()} == groups
        used = [
            one.transactional_id for found in admin.list_transactions().values() for one in found
        ]
        assert sorted(name.partition("predictor-")[0] for name in used if "predictor-" in name) == [
            *sorted(prefixes)
        ]
        own = [name for name in used if name.startswith(f"{NAME}.")]
        assert {name.removeprefix(f"{NAME}.").partition("-")[0] for name in own} == {
            *("predictor", "trainer", "dead")
        }


def check_homes(eu: Pipeline, plain: Pipeline) -> None:
    """A forgotten or another name is one line, whatever the script."""
    forgotten = f"of the pipeline {NAME}, but PIPELINE_NAME is not set: set it to {NAME}"
    another = "of a pipeline without a name, but PIPELINE_NAME is us: unset it"
    for text, script in (
        (forgotten, eu.start("trainer.py", PIPELINE_NAME="")),
        (another, plain.start("-m", "ops", "list", PIPELINE_NAME="us")),
    ):
        assert script.process.wait(60) == 1
        (line,) = script.text().splitlines()
        assert text in line, line
