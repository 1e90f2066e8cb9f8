"""The list of permissions is that of the calls."""

from cloud import permissions
from tests.unit.cloud.conftest import Run
from tests.unit.cloud.fake_aws import FakeAws


def test_every_call_that_is_made_has_its_permission_and_no_more(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    run("deploy", "2", "--challenger", "3")
    run("traffic", "champion=1", "challenger=1")
    run("traffic", "--rollback")
    run("delete", "--all")
    assert set(aws.calls) == {*permissions.SAGEMAKER, *permissions.S3}
    assert "sagemaker:UpdateEndpoint" in permissions.in_words()
