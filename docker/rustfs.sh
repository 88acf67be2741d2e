#!/bin/sh
# The object store's own entry point, with its keys taken from the secrets' files.
set -eu
RUSTFS_ACCESS_KEY=$(tr -d '\n' < /run/secrets/s3_access_key)
RUSTFS_SECRET_KEY=$(tr -d '\n' < /run/secrets/s3_secret_key)
export RUSTFS_ACCESS_KEY RUSTFS_SECRET_KEY
exec rustfs /data
