"""The fault matrix: real processes, really killed, and what is left of their work. `make faults` runs it."""
