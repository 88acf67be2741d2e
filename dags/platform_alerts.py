"""`platform.alerts`, where there is a `pipelines/alerts.yaml`."""

from plugins.alerts import alerts_dag
from tasks.core.settings import Settings

if (dag := alerts_dag(Settings.from_environment())) is not None:
    globals()[dag.dag_id] = dag
