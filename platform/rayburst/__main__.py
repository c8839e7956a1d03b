"""`python -m rayburst` is `rayburst`."""

from rayburst.cli import main

main()
