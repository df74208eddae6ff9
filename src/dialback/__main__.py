"""``python -m dialback``: the same as the ``dialback`` command."""

from dialback.cli.main import main

main()
