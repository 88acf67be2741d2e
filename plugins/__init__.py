"""Penstock inside Airflow: the Ray job operator, the step operator, extra links and the pages of the UI.

Nothing here is imported by `tasks/`. Modules stay light: what parses DAG files or runs triggers must not pay for
the libraries that a step needs.
"""
