"""`python -m minidl`."""

from minidl.cli import main

main()
