"""Stores for the tests below."""

from store_fixtures import proxy, proxy_of_module, s3_url, store_settings

__all__ = ["proxy", "proxy_of_module", "s3_url", "store_settings"]
