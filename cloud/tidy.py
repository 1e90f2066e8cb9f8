"""Deletes what belongs to an endpoint and is needed no more."""

from collections.abc import Collection

from cloud import endpoints, requests
from cloud.aws import Answer, Aws, AwsError
from cloud.registry import versions
from utils.process import Report
from utils.settings import Settings


def delete_configs(
    aws: Aws, settings: Settings, endpoint: str, keep: Collection[str], report: Report
) -> None:
    """Delete the endpoint's configurations, and the models that none of those left needs.

    Only what has the pipeline's tag is deleted.

    Args:
        aws: Makes the calls.
        settings: The pipeline's settings.
        endpoint: The endpoint's name.
        keep: The names of configurations to keep.
        report: Prints what is deleted.

    Raises:
        AwsError: Something could not be deleted; the rest is left.
    """
    needed: set[str] = set()
    for config in _configs(aws, settings, endpoint):
        name = str(config["EndpointConfigName"])
        if name in keep:
            needed.update(_models_of(aws, name))
        else:
            aws.call("delete_endpoint_config", EndpointConfigName=name)
            report(f"endpoint configuration {name} deleted")
    for model in aws.pages("list_models", "Models", NameContains=f"{endpoint}-"):
        name = str(model["ModelName"])
        unneeded = requests.is_model_of(endpoint, name) and name not in needed
        if unneeded and _is_own(aws, settings, str(model["ModelArn"])):
            aws.call("delete_model", ModelName=name)
            report(f"model {name} deleted")


def delete_versions(aws: Aws, settings: Settings, report: Report) -> None:
    """Delete all versions of the pipeline's group, the group itself, and the packed bundles in S3.

    Raises:
        AwsError: Something could not be deleted; the rest is left.
    """
    group = requests.group_of(settings)
    try:
        found = aws.call("describe_model_package_group", ModelPackageGroupName=group)
    except AwsError as error:
        if not error.is_absent:
            raise
    else:
        if not _is_own(aws, settings, str(found["ModelPackageGroupArn"])):
            raise AwsError(f"model package group {group} was not made by this pipeline")
        _delete_group(aws, settings, report)
    _delete_objects(aws, settings, report)


def _delete_group(aws: Aws, settings: Settings, report: Report) -> None:
    group = requests.group_of(settings)
    for version in versions(aws, settings):
        aws.call("delete_model_package", ModelPackageName=version["ModelPackageArn"])
        report(f"version {version['ModelPackageArn']} deleted")
    aws.call("delete_model_package_group", ModelPackageGroupName=group)
    report(f"model package group {group} deleted")


def _delete_objects(aws: Aws, settings: Settings, report: Report) -> None:
    bucket, prefix = settings.sagemaker.bucket, requests.keys_of(settings)
    after = ""
    while True:
        page = aws.s3("list_objects_v2", Bucket=bucket, Prefix=prefix, StartAfter=after)
        for found in page.get("Contents", ()):
            after = str(found["Key"])
            if requests.is_key(settings, after):
                aws.s3("delete_object", Bucket=bucket, Key=after)
                report(f"s3://{bucket}/{after} deleted")
        if not page.get("IsTruncated"):
            return


def _configs(aws: Aws, settings: Settings, endpoint: str) -> list[Answer]:
    """The endpoint's own configurations."""
    found = aws.pages("list_endpoint_configs", "EndpointConfigs", NameContains=f"{endpoint}-")
    return [
        config
        for config in list(found)
        if requests.is_config_of(endpoint, str(config["EndpointConfigName"]))
        and _is_own(aws, settings, str(config["EndpointConfigArn"]))
    ]


def _models_of(aws: Aws, config: str) -> set[str]:
    found = aws.call("describe_endpoint_config", EndpointConfigName=config)
    variants = [*found["ProductionVariants"], *found.get("ShadowProductionVariants", ())]
    return {str(variant["ModelName"]) for variant in variants}


def _is_own(aws: Aws, settings: Settings, arn: str) -> bool:
    return endpoints.tags_of(aws, arn).get(requests.OWNER) == requests.owner_of(settings)
