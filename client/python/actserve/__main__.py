"""`python -m actserve`: the command line."""

from actserve.cli import main

main()
