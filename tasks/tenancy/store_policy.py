"""The least that a tenant's credentials have to be allowed in the object store."""

from __future__ import annotations

from typing import Any

_OBJECTS = (
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)


def s3_policy(store_url: str, tenant: str) -> dict[str, Any]:
    """An IAM policy for the workers of one tenant: everything below its prefix, and nothing beside it.

    Beside the prefix are `jobs/<submission>.json`, where a Ray job leaves its answer for Airflow: they may be written, and never read.

    Args:
        store_url: `s3://bucket/prefix`.
        tenant: Whose.

    Source: AWS, "Actions, resources, and condition keys for Amazon S3".
    """
    bucket, _, prefix = store_url.removeprefix("s3://").strip("/").partition("/")
    root = f"{prefix}/" if prefix else ""
    own = f"{root}{tenant}"
    arn = f"arn:aws:s3:::{bucket}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "ListOwnPrefix",
                "Effect": "Allow",
                "Action": ["s3:ListBucket"],
                "Resource": [arn],
                "Condition": {"StringLike": {"s3:prefix": [own, f"{own}/*"]}},
            },
            {
                "Sid": "OwnObjects",
                "Effect": "Allow",
                "Action": list(_OBJECTS),
                "Resource": [f"{arn}/{own}/*"],
            },
            {
                "Sid": "AnswersOfJobs",
                "Effect": "Allow",
                "Action": ["s3:PutObject"],
                "Resource": [f"{arn}/{root}jobs/*"],
            },
        ],
    }
