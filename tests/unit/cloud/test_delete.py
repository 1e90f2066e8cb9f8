"""`python -m cloud delete`."""

import boto3

from tests.unit.cloud.conftest import Run
from tests.unit.cloud.fake_aws import BUCKET, FakeAws, Refusal


def test_endpoint_is_gone_before_it_is_said(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    run("deploy", "2", "--challenger", "3")
    aws.script.looks = 3
    lines = run("delete")
    assert lines[0].startswith("endpoint adult is Deleting, ")
    assert lines[1] == "endpoint adult is gone"
    found = aws.everything()
    assert not (found["endpoints"] or found["configs"] or found["models"])
    assert len(found["versions"]) == len(found["objects"]) == 3


def test_endpoint_that_still_runs_is_never_said_to_be_gone(run: Run, aws: FakeAws) -> None:
    run("deploy")
    before = aws.everything()
    aws.script.looks = 10**6
    (line,) = run("delete", "--timeout", "0.1", status=1)
    assert "endpoint adult is still there after 0 s, Deleting; the same command waits on" in line
    assert aws.everything() == before
    aws.finish_change("adult", looks=1)
    assert "endpoint adult is gone" in run("delete")
    assert not aws.everything()["models"]


def test_endpoint_that_changes_is_deleted_afterwards(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    aws.script.looks = 2
    run("deploy", "2", "--no-wait")
    assert "endpoint adult is gone" in run("delete")


def test_refused_deletion_is_one_line_and_leaves_the_rest(run: Run, aws: FakeAws) -> None:
    run("deploy")
    before = aws.everything()
    aws.script.refusals["DeleteEndpoint"] = [Refusal("you may not", "AccessDeniedException")]
    (line,) = run("delete", status=1)
    assert line.endswith("delete_endpoint: AccessDeniedException: you may not")
    assert aws.everything() == before


def test_all_deletes_versions_and_packed_models_of_this_pipeline_alone(
    run: Run, aws: FakeAws
) -> None:
    run("deploy", "1", "--shadow", "3")
    run("deploy", "1", "--endpoint", "adult-b")
    notes = "of/tests/income-bracket/notes.txt"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=notes, Body=b"")
    run("delete", "--all")
    found = aws.everything()
    assert found["objects"] == [notes]
    assert not (found["versions"] or found["groups"])
    assert found["endpoints"] == ["adult-b"]
    assert len(found["models"]) == len(found["configs"]) == 1


def test_dry_run_deletes_nothing(run: Run, aws: FakeAws) -> None:
    run("deploy", "2", "--shadow", "3")
    before = aws.everything()
    lines = run("delete", "--all", "--dry-run")
    assert aws.everything() == before
    for method in ("endpoint", "endpoint_config", "model", "model_package", "model_package_group"):
        assert any(line.startswith(f"sagemaker.delete_{method}(") for line in lines), method
    assert sum(line.startswith("s3.delete_object(") for line in lines) == 2
    assert not any("gone" in line or "deleted" in line for line in lines)


def test_nothing_to_delete_is_no_failure(run: Run, aws: FakeAws) -> None:
    assert run("delete", "adult-c") == ["there is no endpoint adult-c"]
