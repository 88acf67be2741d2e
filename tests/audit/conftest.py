"""Stores for the tests below."""

from store_fixtures import s3_url, store_settings

__all__ = ["s3_url", "store_settings"]
