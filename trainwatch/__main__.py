"""`python -m trainwatch` is `trainwatch`."""

import sys

from trainwatch.cli import main

sys.exit(main())
