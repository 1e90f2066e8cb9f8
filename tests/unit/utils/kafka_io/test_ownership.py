"""Who owns the topics of a cluster, from the log of a real broker."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest

from tests.harness import Pipeline, delete_topics_and_groups, until
from tests.unit.errors import one_line
from tests.unit.utils.kafka_io.test_exactly_once import join_group, poll_until_assigned
from utils import home, kafka_io
from utils.broker import Broker
from utils.kafka_io import ForeignTopics, check_owner, claim_topics
from utils.kafka_io.ownership import NOTE_EVERY, NOTES
from utils.messages import GROUPS, RETRAIN_TOPIC, ModelLoaded, RetrainRequest, Rollback

MakeHome = Callable[[str], Pipeline]


@pytest.fixture
def make_home(empty_broker: Broker, tmp_path: Path) -> MakeHome:
    """Makes homes on one cluster, whose topics exist and are nobody's yet."""

    def make(name: str) -> Pipeline:
        pipeline = Pipeline(tmp_path / name, empty_broker.bootstrap)
        kafka_io.ensure_topics(pipeline.settings.kafka, GROUPS)
        return pipeline

    return make


def refusal(pipeline: Pipeline) -> str:
    with pytest.raises(ForeignTopics) as error:
        claim_topics(pipeline.settings)
    with pytest.raises(ForeignTopics):
        check_owner(pipeline.settings)
    return one_line(error.value)


def marks(pipeline: Pipeline) -> list[str]:
    return [event["home"] for event in pipeline.events("home_mark")]


def test_first_home_owns_the_topics(make_home: MakeHome) -> None:
    first, second = make_home("first"), make_home("second")
    check_owner(second.settings)
    assert marks(first) == []
    own = claim_topics(first.settings).home
    assert claim_topics(first.settings).home == own == home.identify(first.settings).id
    line = refusal(second)
    for text in (str(first.home), own[:8], str(second.home), "--take-over"):
        assert text in line
    assert marks(first) == [own]


def test_one_of_several_homes_at_once_owns_the_topics(make_home: MakeHome) -> None:
    homes = [make_home(name) for name in "abcd"]

    def owns(pipeline: Pipeline) -> bool:
        try:
            return bool(claim_topics(pipeline.settings).home)
        except ForeignTopics:
            return False

    with ThreadPoolExecutor(len(homes)) as pool:
        assert sum(pool.map(owns, homes)) == 1
    assert sum(map(owns, homes)) == 1


def test_events_name_the_owner_after_the_mark_has_expired(make_home: MakeHome) -> None:
    first, second = make_home("first"), make_home("second")
    first.send([(RETRAIN_TOPIC, None, {"home": ["?"]}), (RETRAIN_TOPIC, None, {})])
    kafka_io.announce(first.settings, RetrainRequest(reason="manual", batch_id="manual-1"))
    assert home.identify(first.settings).id[:8] in refusal(second)
    assert claim_topics(first.settings).home == marks(first)[0]  # marked again
    assert str(first.home) in refusal(second)


def test_take_over_lasts_whatever_the_former_owner_writes(make_home: MakeHome) -> None:
    first, second = make_home("first"), make_home("second")
    former = claim_topics(first.settings).home
    kafka_io.announce(first.settings, ModelLoaded(model_id=4))
    claim = claim_topics(second.settings, take_over=True)
    assert (claim.former, set(claim.models)) == (former, {4})
    kafka_io.announce(first.settings, Rollback(model_id=2, from_model_id=5, reason="a test"))
    claim = claim_topics(second.settings)
    assert (claim.former, set(claim.models)) == ("", {2, 4, 5})
    assert str(second.home) in refusal(first)
    claim_topics(first.settings, take_over=True)
    assert str(first.home) in refusal(second)


def test_topics_are_not_taken_from_running_scripts(make_home: MakeHome) -> None:
    first, second = make_home("first"), make_home("second")
    claim_topics(first.settings)
    with closing(join_group(first)) as running:
        poll_until_assigned(running)
        with pytest.raises(ForeignTopics, match=r"are running \(predictor\)"):
            claim_topics(second.settings, take_over=True)
    claim_topics(first.settings)


def test_take_over_gives_the_home_another_name(make_home: MakeHome) -> None:
    """Unless scripts run under the former one, which would go on."""
    before = make_home("first")
    servers = before.settings.kafka.bootstrap_servers
    own = claim_topics(before.settings).home
    named = Pipeline(before.home, servers, PIPELINE_NAME="eu")
    with closing(join_group(before)) as running:
        poll_until_assigned(running)
        with pytest.raises(ForeignTopics, match=r"are running \(predictor\)"):
            claim_topics(named.settings, take_over=True)
    home.check_name(before.settings)

    def takes_over() -> bool:
        with suppress(ForeignTopics):  # until the session of the member is over
            return claim_topics(named.settings, take_over=True).home == own
        return False

    until(takes_over, 20)  # though there are no such topics yet
    home.check_name(named.settings)
    kafka_io.ensure_topics(named.settings.kafka, GROUPS)
    claim_topics(named.settings)
    second = Pipeline(before.home.parent / "second", servers, PIPELINE_NAME="eu")
    assert "the topics eu.* at" in refusal(second)
    assert marks(named) == marks(before) == [own]


def test_missing_and_recreated_topics_are_claimed(make_home: MakeHome) -> None:
    first, second = make_home("first"), make_home("second")
    own = claim_topics(first.settings).home
    delete_topics_and_groups(first.env["KAFKA_BOOTSTRAP_SERVERS"])
    assert claim_topics(first.settings).home == own
    make_home("first")
    claim_topics(second.settings)
    assert str(second.home) in refusal(first)


def test_long_log_is_read_on_from_where_it_was_read(make_home: MakeHome) -> None:
    first, second = make_home("first"), make_home("second")
    claim_topics(first.settings)
    first.send(
        (RETRAIN_TOPIC, None, {"model_loaded": True, "model_id": number % 9})
        for number in range(NOTE_EVERY)
    )
    claim_topics(first.settings)
    notes = msgspec.json.decode((first.home / "data" / NOTES).read_bytes())
    assert notes["offset"] > NOTE_EVERY and set(notes["models"]) == set(range(9))
    claim_topics(second.settings, take_over=True)
    assert str(second.home) in refusal(first)
    delete_topics_and_groups(first.env["KAFKA_BOOTSTRAP_SERVERS"])
    make_home("first")
    assert claim_topics(first.settings).models == set()
    assert str(first.home) in refusal(second)
