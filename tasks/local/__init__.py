"""This machine's own Airflow, MLflow and Ray: start, find, show and end them."""

from tasks.local.airflow_client import AirflowClient
from tasks.local.parts import PROFILES, profile_of
from tasks.local.services import (
    ServiceState,
    credentials,
    ray_environment,
    start_services,
    stop_services,
    survey,
)

__all__ = [
    "PROFILES",
    "AirflowClient",
    "ServiceState",
    "credentials",
    "profile_of",
    "ray_environment",
    "start_services",
    "stop_services",
    "survey",
]
