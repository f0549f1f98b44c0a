"""One seed for a run, and one for each stage that draws from it."""

import hashlib


def stage_seed(seed: int, stage: str) -> int:
    """Return a stage's own seed, so that stages draw independent numbers from one `--seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:6], "big")
