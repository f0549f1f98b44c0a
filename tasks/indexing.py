"""The index stage: the miniature's catalog, rendered, embedded and indexed.

An output holds `catalog/` (meshes, and the truth that no stage reads) and `index/`, and so needs nothing else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from redream.config import RetrievalConfig
from redream.weights import weights_digest
from tasks.runs import Run
from tasks.stage import RETRIES, RETRY_DELAYS, Work, choose_device, is_passing, run_stage
from tasks.store import Output, StageKey, stage_key

STAGE_VERSION = 1
CATALOG_SEED = 0
VARIANTS_PER_PAIR = 3  # 128 pairs of category and colour make 384 assets


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexPlace:
    """An index that can be opened: its folder, where its meshes lie, and the hash of its content."""

    index_dir: str
    asset_root: str
    content_hash: str
    num_assets: int


@task(
    name="index",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_condition_fn=is_passing,
)
def index_miniature(run: Run, config: RetrievalConfig) -> Output:
    """Make the miniature's catalog and its index."""

    def produce(work: Work) -> dict[str, object]:
        # Imported here, as in every stage: a run that reuses its stages should not wait for torch.
        from index_build.build import build_index
        from index_build.catalog import read_catalog
        from redream.clip import Clip
        from redream.mini.catalog import write_catalog

        write_catalog(work.folder / "catalog", seed=CATALOG_SEED, num_variants=VARIANTS_PER_PAIR)
        assets = read_catalog(work.folder / "catalog")
        manifest = None
        clip = Clip(config.clip_model, choose_device())
        for step in work.track(build_index(assets, clip, config, work.folder / "index"), len(assets)):
            manifest = step.manifest
        assert manifest is not None
        asset_root = Path(manifest.asset_root).relative_to((work.folder).resolve()).as_posix()
        work.metrics["num_assets"] = manifest.num_assets
        return {"asset_root": asset_root, "content_hash": manifest.content_hash, "num_assets": manifest.num_assets}

    return run_stage(run, index_key(config), asdict(config), produce)


def index_key(config: RetrievalConfig) -> StageKey:
    settings = {"num_index_views": config.num_index_views, "catalog_seed": CATALOG_SEED, "variants": VARIANTS_PER_PAIR}
    return stage_key("index", STAGE_VERSION, settings, {"clip": weights_digest(config.clip_model)})


def built_index(output: Output) -> IndexPlace:
    """Return the index that an index stage made."""
    return IndexPlace(
        index_dir=str(output.path("index")),
        asset_root=str(output.path(output.result["asset_root"])),
        content_hash=output.result["content_hash"],
        num_assets=output.result["num_assets"],
    )


def given_index(index_dir: str) -> IndexPlace:
    """Return an index that the user names."""
    from redream.retrieval import read_manifest

    manifest = read_manifest(Path(index_dir))
    return IndexPlace(
        index_dir=index_dir,
        asset_root=manifest.asset_root,
        content_hash=manifest.content_hash,
        num_assets=manifest.num_assets,
    )
