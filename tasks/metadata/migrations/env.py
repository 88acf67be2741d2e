"""For `alembic` on the command line, when a new migration is written; Penstock itself migrates in `schema.py`.

`alembic -c tasks/metadata/migrations/alembic.ini -x url=sqlite:///... revision --autogenerate -m "..."`
"""

from alembic import context
from sqlalchemy import create_engine

from tasks.metadata.schema import VERSION_TABLE
from tasks.metadata.tables import metadata

with create_engine(context.get_x_argument(as_dictionary=True)["url"]).connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE)
    with context.begin_transaction():
        context.run_migrations()
