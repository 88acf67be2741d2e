"""`python -m tasks.local.mlflow_tables`: MLflow's tables in the empty database at `MLFLOW_BACKEND_STORE_URI`.

As MLflow's server makes them. The URL may hold a password, so it is not an argument that a list of processes shows.
"""

from __future__ import annotations

import os


def main(url: str) -> None:
    """Create all tables in the empty database at `url` (an SQLAlchemy URL)."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(url)
    _initialize_tables(engine)
    engine.dispose()


if __name__ == "__main__":
    main(os.environ["MLFLOW_BACKEND_STORE_URI"])
