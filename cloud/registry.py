"""Where a bundle is kept in AWS: packed in S3, and as a version in the model registry."""

import base64
import hashlib

from cloud import requests
from cloud.aws import Answer, Aws, AwsError
from cloud.pack import Packed
from cloud.undo import Made
from utils.process import Report
from utils.settings import Settings


def keep(aws: Aws, settings: Settings, packed: Packed, made: Made, report: Report) -> None:
    """Upload a bundle and register its version in the group, unless that was done before.

    Args:
        aws: Makes the calls.
        settings: The pipeline's settings.
        packed: The bundle.
        made: Learns what was made.
        report: Prints what was made.

    Raises:
        AwsError: It cannot be done.
    """
    _upload(aws, settings, packed, made, report)
    _register(aws, settings, packed, made, report)


def _upload(aws: Aws, settings: Settings, packed: Packed, made: Made, report: Report) -> None:
    where = {"Bucket": settings.sagemaker.bucket, "Key": requests.key_of(settings, packed)}
    url = requests.url_of(settings, packed)
    try:
        aws.s3("head_object", **where)
    except AwsError as error:
        if not error.is_absent:
            raise AwsError(f"{url}: {error}", error.code) from None
        checksum = base64.b64encode(hashlib.sha256(packed.content).digest()).decode()
        # S3 compares the checksum: what arrives damaged is refused.
        aws.s3("put_object", **where, Body=packed.content, ChecksumSHA256=checksum)
        made.add(url, lambda: aws.s3("delete_object", **where))
        report(f"model {packed.model_id} uploaded: {url} ({len(packed.content):,} bytes)")


def ensure_group(aws: Aws, settings: Settings, made: Made, report: Report) -> None:
    """Make the group of the pipeline's versions, unless it is there.

    Raises:
        AwsError: It cannot be made.
    """
    name = {"ModelPackageGroupName": requests.group_of(settings)}
    try:
        aws.call("describe_model_package_group", **name)
    except AwsError as error:
        if not error.is_absent:
            raise
        aws.call("create_model_package_group", **requests.group_request(settings))
        what = f"model package group {requests.group_of(settings)}"
        made.add(what, lambda: aws.call("delete_model_package_group", **name))
        report(f"{what} created")


def _register(aws: Aws, settings: Settings, packed: Packed, made: Made, report: Report) -> None:
    if _is_registered(aws, settings, packed):
        return
    request = requests.package_request(settings, packed)
    arn = str(aws.call("create_model_package", **request).get("ModelPackageArn", ""))
    made.add(f"version {arn}", lambda: aws.call("delete_model_package", ModelPackageName=arn))
    report(f"model {packed.model_id} registered as {request['ModelApprovalStatus']}: {arn}")


def _is_registered(aws: Aws, settings: Settings, packed: Packed) -> bool:
    wanted = requests.description_of(packed)
    try:
        return wanted in (one.get("ModelPackageDescription") for one in versions(aws, settings))
    except AwsError as error:
        if error.is_absent:  # a dry run has not made the group
            return False
        raise


def versions(aws: Aws, settings: Settings) -> list[Answer]:
    """All versions of the group, the latest first."""
    return list(
        aws.pages(
            "list_model_packages",
            "ModelPackageSummaryList",
            ModelPackageGroupName=requests.group_of(settings),
            SortBy="CreationTime",
            SortOrder="Descending",
        )
    )
