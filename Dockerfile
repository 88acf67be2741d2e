# One image for every Penstock process: Airflow's parts, MLflow, Ray and the command line, from the same lock.
FROM python:3.11-slim-bookworm AS build
COPY requirements.txt requirements-hashes.txt /tmp/
RUN python -m venv /opt/penstock/venv \
 && /opt/penstock/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/requirements-hashes.txt \
 && /opt/penstock/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 50000 penstock \
 && mkdir -p /state /metrics && chown penstock:penstock /state /metrics
COPY --from=build /opt/penstock/venv /opt/penstock/venv
COPY --chown=penstock:penstock . /opt/penstock/project
ENV PATH=/opt/penstock/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PENSTOCK_PROJECT=/opt/penstock/project \
    PENSTOCK_HOME=/state \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
RUN pip install --no-cache-dir --no-deps --editable /opt/penstock/project
USER penstock
WORKDIR /state
