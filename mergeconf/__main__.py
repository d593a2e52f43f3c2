"""`python -m mergeconf`."""

from mergeconf.cli import main

main()
