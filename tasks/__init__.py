"""Penstock's steps as plain Python: rooms, and the wiring that joins them. Nothing here imports Airflow."""
