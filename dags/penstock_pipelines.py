"""Airflow DAGs `<name>.train`, `<name>.score` and `<name>.monitor` of every folder under `pipelines/`.

A folder whose `pipeline.yaml` is wrong is left out here and reported by penstock_broken_pipelines.py, so that it
takes no other pipeline's DAGs down.
"""

from plugins.pipeline_dags import build_all
from tasks.core.settings import Settings

dags, _ = build_all(Settings.from_environment())
globals().update(dags)
