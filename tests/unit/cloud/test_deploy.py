"""`python -m cloud deploy`, with boto3 against moto's server."""

import os
import signal
import sys
from pathlib import Path

import boto3
import pytest

from tests.unit.cloud.conftest import Run, configure
from tests.unit.cloud.fake_aws import SECTION, FakeAws, Refusal
from utils.model_store import ModelStore

_new_session = boto3.session.Session


def test_first_deployment_makes_everything_and_a_second_one_nothing(run: Run, aws: FakeAws) -> None:
    aws.script.looks = 2
    lines = run("deploy")
    assert lines[-1] == "endpoint adult serves model 2"
    assert sum(line.startswith("endpoint adult is Creating, ") for line in lines) == 1
    found = aws.everything()
    assert {name: len(things) for name, things in found.items()} == dict.fromkeys(found, 1)
    aws.calls.clear()
    assert run("deploy") == ["endpoint adult serves model 2 already"]
    assert aws.calls == ["DescribeEndpoint", "ListTags"]
    assert aws.everything() == found


def test_version_is_registered_as_the_gate_decided(run: Run, aws: FakeAws, home: Path) -> None:
    run("deploy", "1", "--shadow", "3")
    versions = aws.sagemaker.model_packages.values()
    assert [one.model_approval_status for one in versions] == ["Approved", "Rejected"]
    first, refused = (one.customer_metadata_properties for one in versions)
    assert (first["model_id"], first["accepted"]) == ("1", "true")
    assert (refused["model_id"], refused["accepted"]) == ("3", "false")
    assert float(first["challenger/log_loss"]) == 0.25
    assert "challenger/auc" not in first  # it was NaN, which is no figure
    (container,) = next(iter(versions)).inference_specification["Containers"]
    key = container["ModelDataUrl"].removeprefix(f"s3://{SECTION['bucket']}/")
    assert key.startswith("of/tests/income-bracket/1-")
    assert key in aws.objects()


def test_next_model_moves_the_endpoint_and_uploads_nothing_twice(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    aws.script.looks = 1
    assert run("deploy", "2")[-1] == "endpoint adult serves model 2"
    assert aws.serving("adult")["champion"].startswith("adult-2-")
    aws.calls.clear()
    assert run("deploy", "1")[-1] == "endpoint adult serves model 1"  # after a rollback
    assert "UpdateEndpoint" in aws.calls
    made = {"PutObject", "CreateModelPackage", "CreateModel", "CreateEndpointConfig"}
    assert not made & set(aws.calls)
    assert len(aws.sagemaker.model_packages) == 2


def test_challenger_takes_its_share(run: Run, aws: FakeAws) -> None:
    last = run("deploy", "2", "--challenger", "3", "--weight", "0.25")[-1]
    assert last == "endpoint adult serves model 2, and challenger 3 25 %"
    variants = aws.sagemaker.endpoints["adult"].production_variants
    weights = {one["VariantName"]: one["DesiredWeight"] for one in variants}
    assert weights == {"champion": 0.75, "challenger": 0.25}
    run("traffic", "champion=1", "challenger=1")
    assert run("deploy", "2", "--challenger", "3", "--weight", "0.25")[-1].endswith("already")
    weights = {one["VariantName"]: one["DesiredWeight"] for one in variants}
    assert weights == {"champion": 0.75, "challenger": 0.25}


def test_shadow_gets_copies(run: Run, aws: FakeAws) -> None:
    last = run("deploy", "--shadow", "3")[-1]
    assert last == "endpoint adult serves model 2, and shadow 3 gets copies"
    serving = aws.serving("adult")
    assert serving["champion"].startswith("adult-2-") and serving["shadow"].startswith("adult-3-")


def test_refused_model_becomes_champion_only_by_force_or_by_a_rollback(
    run: Run, aws: FakeAws, home: Path
) -> None:
    (line,) = run("deploy", "3", status=1)
    assert "model 3 was refused by the gate" in line
    assert aws.calls == []
    assert run("deploy", "3", "--force")[-1] == "endpoint adult serves model 3"
    run("delete")
    ModelStore(home / "models").rollback(3, "a test")
    assert run("deploy")[-1] == "endpoint adult serves model 3"


@pytest.mark.parametrize(
    "operation",
    [
        "CreateModelPackage",
        "CreateModel",
        "CreateEndpointConfig",
        "CreateEndpoint",
    ],
)
def test_what_a_failed_run_made_is_deleted_again(run: Run, aws: FakeAws, operation: str) -> None:
    aws.script.refusals[operation] = [Refusal("you have too many", "ResourceLimitExceeded")]
    (line,) = run("deploy", status=1)
    assert "ResourceLimitExceeded: you have too many; " in line
    assert "deleted again: " in line
    assert not any(aws.everything().values())


def test_endpoint_that_fails_to_start_is_deleted_again(run: Run, aws: FakeAws) -> None:
    aws.script.looks, aws.script.failure = 1, "The container\ndid not answer /ping"
    (line,) = run("deploy", status=1)
    assert "endpoint adult is Failed: The container did not answer /ping; deleted again" in line
    assert not any(aws.everything().values())


def test_endpoint_that_is_rolled_back_serves_what_it_served(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    before = aws.everything()
    aws.script.looks, aws.script.failure = 1, "no capacity"
    (line,) = run("deploy", "2", status=1)
    assert "endpoint adult was rolled back by SageMaker to adult-" in line
    assert "which serves: no capacity; deleted again: endpoint configuration adult-" in line
    assert aws.everything() == before
    assert aws.serving("adult")["champion"].startswith("adult-1-")


def test_what_an_endpoint_may_use_is_left_and_named(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    aws.script.failure, aws.script.ends_as = "no capacity", "UpdateRollbackFailed"
    (line,) = run("deploy", "2", status=1)
    assert "endpoint adult is UpdateRollbackFailed: no capacity; left, because of " in line
    for thing in ("s3://", "version arn:", "model adult-2-", "endpoint configuration adult-"):
        assert thing in line.partition("left, because of ")[2]
    assert len(aws.sagemaker.endpoint_configs) == 2


def test_what_cannot_be_deleted_again_is_named(run: Run, aws: FakeAws) -> None:
    aws.script.refusals = {
        "CreateEndpoint": [Refusal("no")],
        "DeleteModel": [Refusal("you may not", "AccessDeniedException")],
    }
    (line,) = run("deploy", status=1)
    deleted, _, left = line.partition("left, because of ")
    assert "deleted again: endpoint configuration adult-" in deleted
    assert "AccessDeniedException: you may not: model package group" in left
    assert "s3://" in left and "model adult-2-" in left
    assert len(aws.sagemaker._models) == len(aws.objects()) == 1


def test_timeout_leaves_the_change_running_and_the_next_run_waits_on(
    run: Run, aws: FakeAws
) -> None:
    aws.script.looks = 10**6
    (line,) = run("deploy", "--timeout", "0.1", status=1)
    assert "endpoint adult is still there after 0 s, Creating; the same command waits on" in line
    assert len(aws.sagemaker.endpoints) == 1
    aws.finish_change("adult")
    assert run("deploy")[-1] == "endpoint adult serves model 2 already"


def test_failed_endpoint_is_created_again(run: Run, aws: FakeAws) -> None:
    run("deploy", "1")
    aws.sagemaker.endpoints["adult"].endpoint_status = "Failed"
    lines = run("deploy", "2")
    assert "endpoint adult had failed and is created again: AWS gives no reason" in lines
    assert lines.index("endpoint adult serves model 2") > 0


def test_errors_that_pass_do_not_end_the_waiting(run: Run, aws: FakeAws) -> None:
    aws.script.looks = 3
    aws.script.on_look = lambda: aws.script.unanswered.update(
        {"DescribeEndpoint": 1} if len(aws.calls) % 2 else {}
    )
    lines = run("deploy")
    assert any("is in a state that AWS does not say" in line for line in lines)
    assert "endpoint adult serves model 2" in lines


def test_signal_ends_the_waiting_and_the_next_run_goes_on(run: Run, aws: FakeAws) -> None:
    aws.script.looks = 10**6
    aws.script.on_look = lambda: (
        os.kill(os.getpid(), signal.SIGTERM) if "CreateEndpoint" in aws.calls else None
    )
    (line,) = run("deploy", status=1)
    assert line.endswith("interrupted: endpoint adult is Creating")
    aws.script.on_look = lambda: None
    aws.finish_change("adult")
    assert run("deploy")[-1] == "endpoint adult serves model 2 already"


def test_signal_between_two_calls_makes_nothing_more(run: Run, aws: FakeAws) -> None:
    aws.script.on_look = lambda: os.kill(os.getpid(), signal.SIGINT)
    (line,) = run("deploy", status=1)
    assert line.endswith("interrupted; the same command goes on from what is there")
    assert aws.calls == ["DescribeEndpoint"]


def test_no_wait_returns_at_once(run: Run, aws: FakeAws) -> None:
    aws.script.looks = 10**6
    assert run("deploy", "--no-wait")[-1].endswith("changes to model 2; not waited for")
    assert aws.sagemaker.endpoints["adult"].endpoint_status == "Creating"


def test_older_configurations_and_models_are_deleted(run: Run, aws: FakeAws, home: Path) -> None:
    for arguments in (
        ["1"],
        ["2"],
        ["1", "--shadow", "3"],
        ["2", "--shadow", "3"],
        ["3", "--force"],
    ):
        run("deploy", *arguments)
    run("deploy", "1", "--challenger", "2")
    kept = aws.everything()
    assert len(kept["configs"]) <= 5
    assert len(kept["models"]) == 3
    assert len(kept["versions"]) == 3


def test_what_cannot_be_tidied_up_undoes_nothing(run: Run, aws: FakeAws) -> None:
    aws.script.refusals["ListModels"] = [Refusal("you may not", "AccessDeniedException")]
    lines = run("deploy")
    assert lines[-2].startswith("older configurations and models are left: list_models: Access")
    assert lines[-1] == "endpoint adult serves model 2"
    assert aws.serving("adult")["champion"].startswith("adult-2-")


def test_dry_run_shows_every_call_in_its_order_and_changes_nothing(run: Run, aws: FakeAws) -> None:
    aws.script.looks = 1
    before = aws.everything()
    shown = [line for line in run("deploy", "2", "--shadow", "3", "--dry-run") if "(" in line]
    assert aws.everything() == before
    assert all(call.startswith(("Describe", "List", "Head")) for call in aws.calls)
    aws.calls.clear()
    run("deploy", "2", "--shadow", "3")
    operations = [_camel(line) for line in shown]
    made = [call for call in aws.calls if not call.startswith(("Describe", "List", "Head"))]
    assert [name for name in operations if name in made] == made
    (line,) = (line for line in shown if "create_endpoint_config" in line)
    assert "ShadowProductionVariants=[{'VariantName': 'shadow', 'ModelName': 'adult-3-" in line


def _camel(line: str) -> str:
    """The operation of a call as it is shown: sagemaker.create_model(...) is CreateModel."""
    method = line.partition("(")[0].partition(".")[2]
    return "".join(word.capitalize() for word in method.split("_"))


def test_dry_run_that_fails_deletes_nothing(run: Run, aws: FakeAws) -> None:
    aws.script.refusals["DescribeModel"] = [Refusal("you may not", "AccessDeniedException")]
    (line,) = run("deploy", "--dry-run", status=1)
    assert line.endswith("describe_model: AccessDeniedException: you may not")


def test_another_ones_endpoint_is_not_touched(run: Run, aws: FakeAws) -> None:
    run("deploy")
    aws.sagemaker.endpoints["adult"].tags = [{"Key": "pipeline", "Value": "another"}]
    before = aws.everything()
    for arguments in (
        ["deploy", "1"],
        ["traffic", "champion=1"],
        ["traffic", "--rollback"],
        ["delete"],
    ):
        (line,) = run(*arguments, status=1)
        assert "endpoint adult was not made by this pipeline" in line
    assert aws.everything() == before


@pytest.mark.parametrize("missing", ["role", "image", "bucket", "endpoint"])
def test_missing_setting_is_one_line(
    run: Run, aws: FakeAws, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, **{missing: ""})
    (line,) = run("deploy", status=1)
    assert f"[sagemaker] {missing}" in line
    assert aws.calls == []


def test_wrong_bucket_is_one_line(
    run: Run, aws: FakeAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, bucket="nobodys")
    (line,) = run("deploy", status=1)
    assert "NoSuchBucket: The specified bucket does not exist; deleted again: " in line
    assert not any(aws.everything().values())


def test_missing_boto3_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    (line,) = run("deploy", status=1)
    assert line.endswith("this needs boto3: pip install -r requirements-sagemaker.txt")


def test_missing_region_or_credentials_are_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto3.session, "Session", _new_session)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (line,) = run("deploy", status=1)
    assert "Unable to locate credentials" in line
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (line,) = run("deploy", status=1)
    assert "set AWS_DEFAULT_REGION" in line


def test_options_that_make_no_sense_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = run("deploy", "--weight", "0.2", status=1)
    assert "--weight is the share of a challenger" in line
    for arguments in (
        ["--challenger", "1", "--shadow", "2"],
        ["--challenger", "1", "--weight", "1"],
        ["--endpoint", "an_endpoint"],
        ["0"],
    ):
        with pytest.raises(SystemExit):
            run("deploy", *arguments)
        assert "Traceback" not in capsys.readouterr().err
