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
AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=$(database airflow)
AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC=$AIRFLOW__DATABASE__SQL_ALCHEMY_CONN # or Airflow asks for asyncpg
AIRFLOW__API__SECRET_KEY=$(secret airflow_secret_key)
AIRFLOW__API_AUTH__JWT_SECRET=$(secret airflow_jwt_secret)
AIRFLOW__CORE__FERNET_KEY=$(secret airflow_fernet_key)
MLFLOW_BACKEND_STORE_URI=$(database mlflow)
MLFLOW_TRACKING_PASSWORD=$(secret mlflow_password)
MLFLOW_AUTH_ADMIN_PASSWORD=$MLFLOW_TRACKING_PASSWORD
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_secret_key)
RAY_AUTH_TOKEN=$(secret ray_auth_token)
AWS_ACCESS_KEY_ID=$(secret s3_access_key)
AWS_SECRET_ACCESS_KEY=$(secret s3_secret_key)
export PENSTOCK_METADATA_URL AIRFLOW__DATABASE__SQL_ALCHEMY_CONN AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC AIRFLOW__API__SECRET_KEY AIRFLOW__API_AUTH__JWT_SECRET \
  AIRFLOW__CORE__FERNET_KEY MLFLOW_BACKEND_STORE_URI MLFLOW_TRACKING_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
  RAY_AUTH_TOKEN AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY

if [ "${1-}" = mlflow ]; then # its logins are in its database, whose address it reads from a file that holds no password
  PGPASSWORD=$(secret postgres_password)
  export PGPASSWORD
fi

exec "$@"
