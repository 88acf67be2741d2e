"""The S3 endpoint for the preparation of the store."""

from store_fixtures import s3_url  # noqa: F401
