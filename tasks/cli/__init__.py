"""`penstock`: every step of a DAG by hand, and this machine's services. `penstock --help` lists it all.

Exit codes: 0 done; 2 a terminal error or wrong usage (fix the input first); 75 a transient error (try again);
76 the outcome is unknown (look it up by its id before anything else); 130 interrupted; 1 anything else: a
service is not healthy, a run of the demo failed, or an error nobody expected.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The console script."""
    from tasks.cli.app import app
    from tasks.cli.output import plain_errors

    with plain_errors():
        try:
            app()
        except KeyboardInterrupt:
            sys.exit(130)


if __name__ == "__main__":
    main()
