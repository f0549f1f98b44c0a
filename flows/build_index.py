"""The index as a flow: a catalog is rendered, embedded and indexed. So far for the miniature's own catalog."""

from __future__ import annotations

from prefect import flow

from flows.parameters import Place, PresetName, Settings
from flows.request import DEFAULT_OUT, checked_config, checked_out
from redream.config import RetrievalConfig
from tasks.indexing import IndexPlace, built_index, given_index, index_miniature
from tasks.runs import Run, open_run


@flow(name="build_index", flow_run_name="index of {preset}")
def build_index(preset: PresetName = "mini", settings: Settings = {}, out: Place = DEFAULT_OUT) -> IndexPlace:
    """Build the miniature's index, or find it built.

    Args:
        preset: mini; smoke builds a smaller one.
        settings: overrides such as `{"retrieval.num_index_views": 4}`.
        out: folder of runs and stage outputs, on the worker's machine.
    """
    config = checked_config(preset, "redream", settings)
    if not config.retrieval.clip_model.startswith("mini:"):
        raise ValueError(f"preset {preset} has no catalog of its own to index; choose mini")
    request = {"preset": preset, "settings": settings}
    with open_run("build_index", f"index of {preset}", 0, config, request, checked_out(out)) as run:
        return built_index(index_miniature.submit(run, config.retrieval).result())


def find_index(run: Run, index: str, config: RetrievalConfig) -> IndexPlace:
    """Return the index that the user named, or else the miniature's own, built where it is missing."""
    return given_index(index) if index else built_index(index_miniature.submit(run, config).result())
