"""The table of methods: a new one is a file beside this and a line here and in `redream/methods.py`."""

from __future__ import annotations

from redream.distill.methods import mvdream, redream, sds, sjc, vsd
from redream.distill.methods.method import Method

METHODS: dict[str, Method] = {
    "redream": redream.METHOD,
    "vsd": vsd.METHOD,
    "sds": sds.METHOD,
    "sjc": sjc.METHOD,
    "mvdream": mvdream.METHOD,
}
