"""`python -m actserve_server`."""

from actserve_server.cli import main

raise SystemExit(main())
