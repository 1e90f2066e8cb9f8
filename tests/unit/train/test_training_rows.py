"""The offsets in a manifest, which say what a model was trained on."""

from train.training_rows import offsets_by_topic, training_offsets
from utils.model_store.manifest import PublishedModel, TrainingRecord
from utils.settings import Data


def test_model_of_a_version_without_a_limit_learns_all_categories_again() -> None:
    now = Data(train="some.csv", target="y")
    assert now.max_categories == 10_000
    assert TrainingRecord().problem(now).max_categories == 0
    before = {"train": "some.csv", "target": "y"}
    assert TrainingRecord(data=before).problem(now).max_categories == 0
    limited = TrainingRecord(data={**before, "max_categories": 7})
    assert limited.problem(now).max_categories == 7


def test_offsets_of_a_recreated_topic_are_ignored() -> None:
    offsets = {("app_messages", 0): 5, ("outcomes", 1): 7}
    ids = {"app_messages": "a", "outcomes": "o"}
    training = TrainingRecord(offsets=offsets_by_topic(offsets), topic_ids=ids)
    assert training_offsets(training) == offsets
    assert training_offsets(training, {"app_messages": "a", "outcomes": "o"}) == offsets
    assert training_offsets(training, {"app_messages": "b"}) == {("outcomes", 1): 7}
    line = PublishedModel(
        model_id=1, accepted=False, offsets=training.offsets, topic_ids=training.topic_ids
    )
    assert training_offsets(line, {"app_messages": "b"}) == {("outcomes", 1): 7}
    assert training_offsets(PublishedModel(model_id=1, accepted=True)) == {}  # an old line
    without_ids = TrainingRecord(offsets=offsets_by_topic(offsets))  # as older manifests
    assert training_offsets(without_ids, {"app_messages": "b"}) == offsets
