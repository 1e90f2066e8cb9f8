"""`python -m cloud traffic`."""

import pytest

from cloud.traffic import parse_words
from tests.unit.cloud.conftest import Run
from tests.unit.cloud.fake_aws import FakeAws
from utils.errors import UserError


def test_weights_are_moved_once(run: Run, aws: FakeAws) -> None:
    run("deploy", "2", "--challenger", "3")
    last = run("traffic", "adult", "champion=0.5", "challenger=0.5")[-1]
    assert last == "endpoint adult has the weights challenger=0.5, champion=0.5"
    aws.calls.clear()
    assert "has these weights already" in run("traffic", "challenger=0.5")[0]
    assert "UpdateEndpointWeightsAndCapacities" not in aws.calls


def test_weights_that_sagemaker_takes_back_are_a_failure(run: Run, aws: FakeAws) -> None:
    run("deploy", "2", "--challenger", "3")
    aws.script.looks, aws.script.failure = 1, "no capacity"
    (line,) = run("traffic", "champion=0", "challenger=1", status=1)
    assert "rolled back by SageMaker to challenger=0.1, champion=0.9: no capacity" in line


def test_rollback_serves_what_served_before_and_a_second_one_undoes_it(
    run: Run, aws: FakeAws
) -> None:
    run("deploy", "1")
    (line,) = run("traffic", "--rollback", status=1)
    assert "endpoint adult has served nothing else before" in line
    run("deploy", "2", "--challenger", "3")
    assert run("traffic", "--rollback")[-1].endswith(" again (champion=1)")
    assert aws.serving("adult")["champion"].startswith("adult-1-")
    assert run("traffic", "--rollback")[-1].endswith(" again (champion=2 challenger=3)")
    assert set(aws.serving("adult")) == {"champion", "challenger"}


def test_rollback_after_a_failed_deployment_goes_to_what_served_before(
    run: Run, aws: FakeAws
) -> None:
    run("deploy", "1")
    run("deploy", "2")
    aws.script.failure = "no capacity"
    run("deploy", "3", "--force", status=1)
    aws.script.failure = ""
    assert run("traffic", "--rollback")[-1].endswith(" again (champion=1)")


def test_rollback_to_a_configuration_that_was_deleted_is_one_line(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    run("deploy", "2")
    for name in set(aws.sagemaker.endpoint_configs):
        if name != aws.sagemaker.endpoints["adult"].endpoint_config_name:
            del aws.sagemaker.endpoint_configs[name]
    (line,) = run("traffic", "--rollback", status=1)
    assert "was deleted meanwhile" in line


def test_dry_run_moves_nothing(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    run("deploy", "2", "--challenger", "3")
    before = str(aws.sagemaker.endpoints["adult"].response_object)
    lines = run("traffic", "champion=1", "challenger=1", "--dry-run")
    wanted = "sagemaker.update_endpoint_weights_and_capacities(EndpointName='adult', "
    assert any(line.startswith(wanted) for line in lines)
    lines = run("traffic", "--rollback", "--dry-run")
    assert any(line.startswith("sagemaker.update_endpoint(") for line in lines)
    assert str(aws.sagemaker.endpoints["adult"].response_object) == before


def test_unknown_endpoint_or_variant_is_one_line(run: Run, aws: FakeAws) -> None:
    (line,) = run("traffic", "champion=1", status=1)
    assert line.endswith("there is no endpoint adult")
    run("deploy")
    (line,) = run("traffic", "challenger=1", status=1)
    assert line.endswith("endpoint adult has no variant challenger; it has champion")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["champion=-1"], "a weight is a number of 0 or more"),
        (["champion=nan"], "a weight is a number of 0 or more"),
        (["champion=x"], "a weight is a number of 0 or more"),
        (["champion=0"], "one of the weights must be above 0"),
        (["champion=1", "champion=2"], "is no weight of one more variant"),
        (["a", "b"], "is no weight of one more variant"),
        (["an_endpoint"], "wants at most 40 letters"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_words(words)


def test_weights_or_a_rollback_are_wanted(run: Run) -> None:
    for arguments in ([], ["champion=1", "--rollback"]):
        (line,) = run("traffic", *arguments, status=1)
        assert "give either weights" in line
