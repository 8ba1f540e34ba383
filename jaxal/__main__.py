"""`python -m jaxal` is the command `jaxal`."""

from jaxal.cli.main import main

raise SystemExit(main())
