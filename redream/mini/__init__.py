"""The embedded miniature: a small world whose truth is known, and the models trained on it."""

CATALOG_SEED = 0
VARIANTS_PER_PAIR = 3  # 128 pairs of category and colour make 384 assets
