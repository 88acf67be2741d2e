#!/bin/sh
# Secrets come as files in /run/secrets, programs want them in their environment. Nothing is written anywhere.
set -eu

secret() {
  tr -d '\n' < "/run/secrets/$1" || { echo "secret $1 is missing: run \`make secrets\` beside docker-compose.yml" >&2; exit 1; }
}

database() {
  echo "postgresql+psycopg://penstock:$(secret postgres_password)@postgres/$1"
}

PENSTOCK_METADATA_URL=$(database penstock)
export PENSTOCK_METADATA_URL

case "$*" in
  "penstock tenancy keep"*) exec "$@" ;; # it decides in the database alone, and has no other secret
esac

AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=$(database airflow)
AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC=$AIRFLOW__DATABASE__SQL_ALCHEMY_CONN # or Airflow asks for asyncpg
AIRFLOW__API__SECRET_KEY=$(secret airflow_secret_key)
AIRFLOW__API_AUTH__JWT_SECRET=$(secret airflow_jwt_secret)
AIRFLOW__CORE__FERNET_KEY=$(secret airflow_fernet_key)
MLFLOW_TRACKING_PASSWORD=$(secret mlflow_service_password)
RAY_AUTH_TOKEN=$(secret ray_auth_token)
AWS_ACCESS_KEY_ID=$(secret s3_access_key)
AWS_SECRET_ACCESS_KEY=$(secret s3_secret_key)
export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC AIRFLOW__API__SECRET_KEY AIRFLOW__API_AUTH__JWT_SECRET \
  AIRFLOW__CORE__FERNET_KEY MLFLOW_TRACKING_PASSWORD RAY_AUTH_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY

if [ -e /run/secrets/mlflow_password ]; then # MLflow's server and who makes its users: no other container has the admin's password
  MLFLOW_AUTH_ADMIN_PASSWORD=$(secret mlflow_password)
  export MLFLOW_AUTH_ADMIN_PASSWORD
fi

if [ "${1-}" = mlflow ]; then # its logins are in its database, whose address it reads from a file that holds no password
  MLFLOW_BACKEND_STORE_URI=$(database mlflow)
  MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_secret_key)
  PGPASSWORD=$(secret postgres_password)
  export MLFLOW_BACKEND_STORE_URI MLFLOW_FLASK_SERVER_SECRET_KEY PGPASSWORD
fi

exec "$@"
