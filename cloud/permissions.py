"""The IAM permissions that deploy, traffic and delete need."""

#: The operations of SageMaker that they call; each is also the name of a permission.
SAGEMAKER = (
    "AddTags",  # also to create anything with tags
    "CreateEndpoint",
    "CreateEndpointConfig",
    "CreateModel",
    "CreateModelPackage",
    "CreateModelPackageGroup",
    "DeleteEndpoint",
    "DeleteEndpointConfig",
    "DeleteModel",
    "DeleteModelPackage",
    "DeleteModelPackageGroup",
    "DescribeEndpoint",
    "DescribeEndpointConfig",
    "DescribeModel",
    "DescribeModelPackageGroup",
    "ListEndpointConfigs",
    "ListModelPackages",
    "ListModels",
    "ListTags",
    "UpdateEndpoint",
    "UpdateEndpointWeightsAndCapacities",
)
#: The permissions by the operation of S3. Without ListBucket, S3 does not say that a key is free.
S3 = {
    "DeleteObject": ("s3:DeleteObject",),
    "HeadObject": ("s3:GetObject", "s3:ListBucket"),
    "ListObjectsV2": ("s3:ListBucket",),
    "PutObject": ("s3:PutObject",),
}
#: To hand the endpoint's role to SageMaker.
HAND_OVER = "iam:PassRole"


def needed() -> list[str]:
    """All permissions, sorted."""
    of_s3 = {permission for permissions in S3.values() for permission in permissions}
    return sorted({HAND_OVER, *of_s3, *(f"sagemaker:{name}" for name in SAGEMAKER)})


def in_words() -> str:
    """All permissions, for `--help`."""
    return "IAM permissions of deploy, traffic and delete:\n  " + "\n  ".join(needed())
