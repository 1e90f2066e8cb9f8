"""What is asked of SageMaker: names, tags and parameters. Equal content gets an equal name.

    <endpoint>-<12 digits>                  an endpoint configuration
    <endpoint>-<model_id>-<12 digits>       a model
    <prefix>/<group>/<model_id>-<12 digits>/model.tar.gz    a packed bundle in S3

The digits are of the SHA-256 of the content. So a thing that has its name need not be made again.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from cloud.pack import Packed
from utils.errors import UserError
from utils.model_store.manifest import Manifest
from utils.settings import Sagemaker, Settings

Tags = list[dict[str, str]]
Parameters = dict[str, object]

#: The tag by which a pipeline recognises what it has made; its value is the pipeline's name.
OWNER = "pipeline"
#: The tag of an endpoint with the configurations that served before, the latest first.
SERVED = "pipeline:served"
#: The tag of a configuration with its models.
MODELS = "pipeline:models"

CHAMPION, CHALLENGER, SHADOW = "champion", "challenger", "shadow"

#: What the container of `python -m cloud serve` reads and writes.
CONTENT_TYPES = ("application/json", "application/jsonlines", "text/csv")


@dataclass(frozen=True)
class Variant:
    """A model at an endpoint.

    Attributes:
        name: champion, challenger or shadow.
        packed: The bundle.
        weight: Its share of the traffic; of a shadow, the share that is copied to it.
    """

    name: str
    packed: Packed
    weight: float = 1.0


def slug(name: str) -> str:
    """A name in the characters that SageMaker allows.

    >>> slug("income_bracket"), slug("_")
    ('income-bracket', 'pipeline')
    """
    return re.sub("[^a-zA-Z0-9]+", "-", name).strip("-")[:63].rstrip("-") or "pipeline"


def owner_of(settings: Settings) -> str:
    """The pipeline's name in tags: PIPELINE_NAME, else the target's."""
    return slug(settings.kafka.name or settings.data.target)


def group_of(settings: Settings) -> str:
    """The name of the group of model packages."""
    return settings.sagemaker.package_group or owner_of(settings)


def tags(settings: Settings, **more: str) -> Tags:
    """The tags of what the pipeline makes."""
    wanted = {OWNER: owner_of(settings), **more}
    return [{"Key": key, "Value": value} for key, value in wanted.items()]


def digest(content: object) -> str:
    """The 12 digits by which content is recognised."""
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:12]


def key_of(settings: Settings, packed: Packed) -> str:
    """The key of a packed bundle in the bucket."""
    return f"{keys_of(settings)}{packed.model_id}-{_sha256(packed)[:12]}/model.tar.gz"


def keys_of(settings: Settings) -> str:
    """What the keys of all packed bundles begin with."""
    prefix = settings.sagemaker.prefix
    return f"{prefix}/{group_of(settings)}/" if prefix else f"{group_of(settings)}/"


def is_key(settings: Settings, key: str) -> bool:
    """Whether a key is that of a packed bundle of this pipeline."""
    wanted = f"{re.escape(keys_of(settings))}[0-9]+-[0-9a-f]{{12}}/model[.]tar[.]gz"
    return re.fullmatch(wanted, key) is not None


def url_of(settings: Settings, packed: Packed) -> str:
    """Where a packed bundle is."""
    return f"s3://{settings.sagemaker.bucket}/{key_of(settings, packed)}"


def check_complete(section: Sagemaker) -> None:
    """Check that nothing is missing that a deployment needs.

    Raises:
        UserError: A setting is.
    """
    for name, meaning in (
        ("role", "the ARN of the role that the endpoint runs under"),
        ("image", "the container's image in ECR"),
        ("bucket", "the S3 bucket of the packed models"),
    ):
        if not getattr(section, name):
            raise UserError(f"[sagemaker] {name} is not set in pipeline.toml: {meaning}")


def group_request(settings: Settings) -> Parameters:
    """The parameters of create_model_package_group."""
    return {
        "ModelPackageGroupName": group_of(settings),
        "ModelPackageGroupDescription": f"Models that learn {settings.data.target}",
        "Tags": tags(settings),
    }


def description_of(packed: Packed) -> str:
    """By what a bundle's version is found in its group: a version has no tags of its own."""
    return f"model {packed.model_id}, SHA-256 {_sha256(packed)}"


def package_request(settings: Settings, packed: Packed) -> Parameters:
    """The parameters of create_model_package: approved or not, as the gate has decided."""
    section, manifest = settings.sagemaker, packed.manifest
    container = {"Image": section.image, "ModelDataUrl": url_of(settings, packed)}
    return {
        "ModelPackageGroupName": group_of(settings),
        "ModelPackageDescription": description_of(packed),
        "ModelApprovalStatus": "Approved" if manifest.accepted else "Rejected",
        "InferenceSpecification": {
            "Containers": [container],
            "SupportedContentTypes": [*CONTENT_TYPES],
            "SupportedResponseMIMETypes": [*CONTENT_TYPES],
            "SupportedRealtimeInferenceInstanceTypes": [section.instance_type],
        },
        "CustomerMetadataProperties": properties_of(manifest),
    }


def properties_of(manifest: Manifest) -> dict[str, str]:
    """A bundle's origin and metrics as a version's properties, all text."""
    training, gate = manifest.training, manifest.gate
    found: dict[str, object] = {
        "model_id": manifest.model_id,
        "parent_id": manifest.parent_id,
        "created": manifest.created,
        "accepted": str(manifest.accepted).lower(),
        "rows": training.rows,
        "hyper": training.hyper,
        "seed": manifest.seed,
        "cv_loss": training.cv_loss,
        "gate/mean_difference": getattr(gate, "mean_difference", None),
        "gate/standard_error": getattr(gate, "standard_error", None),
    }
    for side in (CHALLENGER, CHAMPION):
        metrics = getattr(manifest.metrics, side)
        for name in metrics.__struct_fields__ if metrics is not None else ():
            found[f"{side}/{name}"] = getattr(metrics, name)
    return {name: str(value) for name, value in found.items() if _is_figure(value)}


def _is_figure(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int | str) and value != ""


def model_request(settings: Settings, endpoint: str, packed: Packed) -> Parameters:
    """The parameters of create_model.

    It is made of image and bundle, not of the registered version: SageMaker makes none of a
    version that is not approved, and a shadow may be a model that the gate refused.
    """
    section = settings.sagemaker
    content = {
        "PrimaryContainer": {"Image": section.image, "ModelDataUrl": url_of(settings, packed)},
        "ExecutionRoleArn": section.role,
    }
    return {
        "ModelName": f"{endpoint}-{packed.model_id}-{digest(content)}",
        **content,
        "Tags": tags(settings),
    }


def config_request(settings: Settings, endpoint: str, variants: Sequence[Variant]) -> Parameters:
    """The parameters of create_endpoint_config."""
    content: dict[str, object] = {
        "ProductionVariants": [
            _variant_request(settings, endpoint, variant)
            for variant in variants
            if variant.name != SHADOW
        ]
    }
    shadows = [one for one in variants if one.name == SHADOW]
    if shadows:
        content["ShadowProductionVariants"] = [
            _variant_request(settings, endpoint, variant) for variant in shadows
        ]
    models = " ".join(f"{one.name}={one.packed.model_id}" for one in variants)
    return {
        "EndpointConfigName": f"{endpoint}-{digest(content)}",
        **content,
        "Tags": tags(settings, **{MODELS: models}),
    }


def _variant_request(settings: Settings, endpoint: str, variant: Variant) -> Parameters:
    return {
        "VariantName": variant.name,
        "ModelName": model_request(settings, endpoint, variant.packed)["ModelName"],
        "InstanceType": settings.sagemaker.instance_type,
        "InitialInstanceCount": settings.sagemaker.instance_count,
        "InitialVariantWeight": variant.weight,
    }


def is_config_of(endpoint: str, name: str) -> bool:
    """Whether a name is that of a configuration of this endpoint.

    >>> is_config_of("adult", "adult-0123456789ab"), is_config_of("adult", "adult-7-0123456789ab")
    (True, False)
    """
    return re.fullmatch(f"{re.escape(endpoint)}-[0-9a-f]{{12}}", name) is not None


def is_model_of(endpoint: str, name: str) -> bool:
    """Whether a name is that of a model of this endpoint.

    >>> is_model_of("adult", "adult-7-0123456789ab"), is_model_of("adult", "adult-b-7-0123456789ab")
    (True, False)
    """
    return re.fullmatch(f"{re.escape(endpoint)}-[0-9]+-[0-9a-f]{{12}}", name) is not None


def values_of(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Tags as AWS lists them, by their keys."""
    return {tag["Key"]: tag["Value"] for tag in found}


def _sha256(packed: Packed) -> str:
    return packed.manifest.manifest_sha256
