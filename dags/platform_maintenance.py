"""Airflow DAG `platform.maintenance`."""

from plugins.pipeline_dags import maintenance_dag
from tasks.core.settings import Settings

dag = maintenance_dag(Settings.from_environment())
