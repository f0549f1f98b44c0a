"""What every kind of catalog gives to the index, and the licence filter that all share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from redream.records import Asset
from redream.retrieval.licenses import is_allowed, license_codes


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The assets to index. Their ids differ, their order is the same each time, their meshes may be still to fetch."""

    name: str  # "objaverse", "mini" or the folder
    root: str  # folder that all mesh paths lie below
    assets: Sequence[Asset]
    dropped: dict[str, int]  # rows, files and objects that are no assets, by reason
    digest: Callable[[Asset], str]  # changes when the mesh's content does; fetches nothing
    annotations: pa.Table | None = None  # what else is known of each asset, in columns that conditions may name


def allowed_assets(assets: Sequence[Asset], licenses: tuple[str, ...], dropped: Counter[str]) -> list[Asset]:
    """Keep the assets whose licences the filter lets pass, and count the others by licence."""
    kept = [asset for asset in assets if is_allowed(asset.license, licenses)]
    if len(kept) < len(assets):
        dropped.update(license_reason(a.license) for a in assets if not is_allowed(a.license, licenses))
    return kept


def license_reason(text: str) -> str:
    return f"license {' and '.join(license_codes(text))}"
