"""Topics that are missing, grow, expire, or are deleted and made again, under whole processes."""

import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient

from tests.harness import Pipeline, Script, until
from utils import kafka_io
from utils.broker import Broker
from utils.kafka_io import TopicPartition
from utils.messages import APP_MESSAGES, CO_PARTITIONED, GROUPS, PREDICTIONS
from utils.settings import ROOT

Row = dict[str, Any]

#: The script that is named, with less patience where it would wait for seconds.
HASTY = """
import runpy, sys
from utils.kafka_io import clients, exactly_once, log_reader
clients.METADATA_MAX_AGE_MS = log_reader.METADATA_MAX_AGE_MS = 500
exactly_once.NO_OFFSET_TIMEOUT_S = 0.5
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def admin_of(broker: Broker) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
        yield admin


def test_pipeline_follows_missing_growing_expired_and_recreated_topics(
    own_broker: Broker, prepared: Path, tmp_path: Path, adult: list[Row]
) -> None:
    pipeline = Pipeline(tmp_path / "home", own_broker.bootstrap)
    pipeline.copy_files_of(prepared)
    hasty = tmp_path / "hasty.py"
    hasty.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{HASTY}")

    try:
        # Missing: both wait, and begin by themselves.
        predictor = pipeline.start(str(hasty), "predictor.py")
        trainer = pipeline.start(str(hasty), "trainer.py", "--evals", "1")
        predictor.says("waiting for topic app_messages, outcomes (initialize.py creates it)")
        trainer.says("waiting for topic retrain_topic")
        kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
        pipeline.send_rows(adult[:25], "first")
        pipeline.wait_for(PREDICTIONS, 25)
        pipeline.wait_for_events("training_completed", 1)
        # More partitions than before: nobody is started again.
        with admin_of(own_broker) as admin:
            admin.create_partitions(dict.fromkeys(CO_PARTITIONED, 2))
        until(lambda: "serves partitions [0, 1]" in predictor.text(), 30, predictor.text)
        pipeline.send(_as_messages(adult[25:30], "more"), partition=1)
        pipeline.wait_for(PREDICTIONS, 30)
        until(lambda: pipeline.stored() == 30, 30)
        # Expired before anyone read them: on with what there is.
        with stopped(predictor, trainer), admin_of(own_broker) as admin:
            pipeline.send_rows(adult[30:40], "expired")
            admin.delete_records({TopicPartition(APP_MESSAGES, 0): 35})
        predictor.says("app_messages-0: offset 25 is not in the log any more (35 to 35)")
        pipeline.send_rows(adult[40:43], "after")
        pipeline.wait_for(PREDICTIONS, 33)
        until(lambda: pipeline.stored() == 33, 30)
        # What has no offset is said, and waited for, once.
        assert predictor.text().count("outcomes-0 has no committed offset") == 1
        # Deleted and made again: its offsets, and so its batches, are called as before.
        with admin_of(own_broker) as admin:
            admin.delete_topics([APP_MESSAGES])
        kafka_io.ensure_topics(pipeline.settings.kafka.model_copy(update={"partitions": 2}), GROUPS)
        pipeline.send_rows(adult[100:125], "again")
        pipeline.wait_for(PREDICTIONS, 58)
        trainer.says("app_messages was deleted and made again; what there was is now")
        completed = pipeline.wait_for_events("training_completed", 2)
        assert [c["batch_id"] for c in completed] == ["app_messages-0-0"] * 2
        assert completed[0]["model_id"] < completed[1]["model_id"]
        assert completed[1]["rows"] < completed[0]["rows"] + 25
        assert pipeline.stored() == 25
        assert (pipeline.home / "messages" / "messages.db.before-1").exists()
        assert predictor.end() == 0 and trainer.end() == 0
    finally:
        pipeline.close()


@contextmanager
def stopped(*scripts: Script) -> Iterator[None]:
    for script in scripts:
        script.process.send_signal(signal.SIGSTOP)
    time.sleep(0.7)  # until the fetches on their way are answered
    yield
    for script in scripts:
        script.process.send_signal(signal.SIGCONT)


def _as_messages(rows: list[Row], prefix: str) -> Iterator[tuple[str, bytes, Any]]:
    for number, row in enumerate(rows):
        name = f"{prefix}-{number}"
        yield APP_MESSAGES, name.encode(), {"request_id": name, "data": row}
