"""`python -m tasks.cli` is `penstock`: Ray jobs start it with the interpreter they were given."""

from tasks.cli import main

main()
