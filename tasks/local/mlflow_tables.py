"""`python -m tasks.local.mlflow_tables [logins]`: MLflow's tables in the empty database at `MLFLOW_BACKEND_STORE_URI`.

As MLflow's server makes them; with `logins` those of its logins. The URL may hold a password, so it is not an argument
that a list of processes shows.
"""

from __future__ import annotations

import os
import sys


def main(url: str, *, logins: bool) -> None:
    """Create all tables in the empty database at `url` (an SQLAlchemy URL)."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(url)
    if logins:
        from mlflow.server.auth.db.utils import migrate

        migrate(engine, "head")
    else:
        _initialize_tables(engine)
    engine.dispose()


if __name__ == "__main__":
    main(os.environ["MLFLOW_BACKEND_STORE_URI"], logins=sys.argv[1:] == ["logins"])
