"""`python -m app.cli` is `plan`."""

from app.cli.main import main

main()
