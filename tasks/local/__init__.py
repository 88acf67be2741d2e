"""This machine's own Airflow, MLflow and Ray: start, find, show and end them."""

from tasks.local.airflow_client import AirflowClient
from tasks.local.services import ServiceState, ray_environment, start_services, stop_services, survey

__all__ = ["AirflowClient", "ServiceState", "ray_environment", "start_services", "stop_services", "survey"]
