"""Word search at Objaverse's size: how long building, opening and asking take, and what they cost.

Run as `python -m benchmarks.word_search --work DIR [--num 800000]`. Captions are seeded sentences of WordNet's nouns by
a heavy-tailed law, so that common words are in a tenth of them, as "white" is in Cap3D's. What is built is kept in the
folder and not built again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from redream.retrieval.lexical_recall import open_lexical, write_lexical
from redream.retrieval.nouns import TABLE, named_things

LOOKS = ["red", "blue", "green", "small", "large", "wooden", "metal", "old", "white", "black", "shiny", "cartoon"]
LOOKS += ["realistic", "yellow", "brown", "tall", "round"]
NUM_QUERIES = 100
NUM_RECALL = 100


def captions(num: int, seed: int = 0) -> list[str]:
    """Return sentences of three nouns and three looks."""
    choose, draw = random.Random(seed), np.random.default_rng(seed)
    nouns = [word for word in json.loads(gzip.decompress(TABLE.read_bytes()))["words"] if " " not in word]
    choose.shuffle(nouns)
    ranks = np.minimum((draw.pareto(0.9, (num, 3)) * 30).astype(int), len(nouns) - 1)

    def look() -> str:
        return choose.choice(LOOKS)

    return [f"a {look()} {look()} {nouns[i]} with a {look()} {nouns[j]} and a {nouns[k]}" for i, j, k in ranks]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--num", type=int, default=800_000)
    arguments = parser.parse_args()
    folder = arguments.work / "lexical"
    texts = captions(arguments.num)
    if not folder.is_dir():
        started = time.perf_counter()
        write_lexical(texts, folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"built in {time.perf_counter() - started:.0f} s, peak of memory {peak:,.0f} MiB")
    print(f"on disk {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.0f} MB")
    queries = [text.partition(" with ")[0] for text in texts[:NUM_QUERIES]] + [
        "a green vehicle",
        "a photo of an animal",
    ]
    del texts
    named_things("a thing")  # reads the table of nouns
    before, started = _resident(), time.perf_counter()
    words = open_lexical(folder, arguments.num)
    print(f"opened in {time.perf_counter() - started:.2f} s")
    words.nearest(queries[0], NUM_RECALL)
    clock, processor = [], []
    for query in queries:
        start, spent = time.perf_counter(), time.process_time()
        words.nearest(query, NUM_RECALL)
        clock.append(1000 * (time.perf_counter() - start))
        processor.append(1000 * (time.process_time() - spent))
    for name, values in (("clock", clock), ("processor", processor)):
        print(f"ms per query, {name}: median {statistics.median(values):.1f}, slowest {max(values):.1f}")
    print(f"memory: {_resident() - before:.0f} MiB more, mapped pages included")


def _resident() -> float:
    """Return the memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
