"""${message}

Revision: ${up_revision}
"""

import sqlalchemy as sa
from alembic import op

from tasks.metadata.column_types import BigId, JsonText, UtcDateTime

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """${message}"""
    ${upgrades if upgrades else "pass"}
