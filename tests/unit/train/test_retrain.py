"""The offsets in a manifest, which say what a model was trained on."""

from train.retrain import offsets_by_topic, training_offsets


def test_offsets_of_a_recreated_topic_are_ignored() -> None:
    offsets = {("app_messages", 0): 5, ("outcomes", 1): 7}
    manifest = {
        "training": {
            "offsets": offsets_by_topic(offsets),
            "topic_ids": {"app_messages": "a", "outcomes": "o"},
        }
    }
    assert training_offsets(manifest) == offsets
    assert training_offsets(manifest, {"app_messages": "a", "outcomes": "o"}) == offsets
    assert training_offsets(manifest, {"app_messages": "b"}) == {("outcomes", 1): 7}
    del manifest["training"]["topic_ids"]  # older manifests have no ids
    assert training_offsets(manifest, {"app_messages": "b"}) == offsets
