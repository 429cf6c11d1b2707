"""``python -m divmon``."""

from divmon.cli import main

raise SystemExit(main())
