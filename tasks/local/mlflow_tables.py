"""`python -m tasks.local.mlflow_tables URL`: MLflow's tables in an empty database, as its server makes them."""

from __future__ import annotations

import sys


def main(url: str) -> None:
    """Create all tables in the empty database at `url` (an SQLAlchemy URL)."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(url)
    _initialize_tables(engine)
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1])
