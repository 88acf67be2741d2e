"""Wait for the object store, make the bucket where it is missing, and refuse a store that does not honour conditional puts."""

from __future__ import annotations

import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tasks.core import Settings, open_store
from tasks.core.object_store import probe

PATIENCE_S = 120.0


def main() -> int:
    settings = Settings.from_environment()
    bucket = settings.store_url.removeprefix("s3://").split("/")[0]
    client = boto3.client("s3", endpoint_url=settings.s3_endpoint, region_name=settings.s3_region)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            known = {found["Name"] for found in client.list_buckets()["Buckets"]}
            if bucket not in known:
                client.create_bucket(Bucket=bucket)
            break
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                print(f"the object store at {settings.s3_endpoint} does not answer: {error}", file=sys.stderr)
                return 1
            time.sleep(2)
    probe(open_store(settings, prefix="_probe"))
    print(f"{settings.store_url} is there, and honours conditional puts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
