"""`python -m flows.command` is the `redream` command."""

from flows.command.start import command

command()
