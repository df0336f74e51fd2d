"""`python -m sottovoce` is the command `sotto`."""

from sottovoce.cli import main

main(prog_name="sotto")
