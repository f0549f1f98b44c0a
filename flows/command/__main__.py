"""`python -m flows.command` is the `redream` command."""

from flows.command.app import command

command()
