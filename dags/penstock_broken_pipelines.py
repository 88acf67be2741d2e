"""Holds no Airflow DAG: raises when a `pipeline.yaml` is wrong, so that the UI shows file, field and fix.

Airflow keeps no DAG of a file that raises. The good pipelines' DAGs are therefore in penstock_pipelines.py.
"""

from plugins.pipeline_dags import raise_broken
from tasks.core.settings import Settings

raise_broken(Settings.from_environment())
