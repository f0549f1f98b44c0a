"""The embeddings of an asset, and shards of them, which are what a killed or spoilt build has to make again.

An asset has the embedding of its caption, and of its views either each one or the direction nearest to all of them,
which is their normalised mean (ReDream, Sec. 5.1). A shard is one safetensors file: `text` [assets, dim] and `image`
[assets, views, dim] as float16, with the assets' keys, the reasons of those that were refused, and a checksum.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from index_build.download import DownloadError
from index_build.views import ViewMaker, Views
from redream.clip import Clip
from redream.files import put_in_place
from redream.meshes.assets import AssetError
from redream.meshes.reading.refusal import ReaderFailed
from redream.records import Asset

NOT_DOWNLOADED = "not downloaded: "
NOT_READ = "not read: "  # by a reader that was killed, say
PASSING = (NOT_DOWNLOADED, NOT_READ)  # refusals that the next build does not take for granted
VIEWS_TOGETHER = 192  # that a GPU embeds at a time, three batches of the model


@dataclass(frozen=True, eq=False)
class Shard:
    """Embedded assets by their keys, and why the others were refused."""

    keys: list[str]
    text: Float16[np.ndarray, "assets dim"]
    image: Float16[np.ndarray, "assets views dim"]
    refused: dict[str, str]


def embed_captions(assets: Sequence[Asset], clip: Clip) -> Float[Tensor, "assets dim"]:
    return clip.embed_text([asset.caption for asset in assets])


def embed_together(views: Sequence[Views], clip: Clip, num_kept: int) -> list[Float[Tensor, "kept dim"]]:
    """Embed the views of several assets at a time."""
    if not views:
        return []
    sizes = [len(images) for images in views]
    return [pool_views(embeddings, num_kept) for embeddings in clip.embed_images(torch.cat(list(views))).split(sizes)]


def pool_views(embeddings: Float[Tensor, "views dim"], num_kept: int) -> Float[Tensor, "kept dim"]:
    """Make the views of an asset one, or keep `num_kept` of them each; an asset with fewer views repeats them."""
    if num_kept > 1:
        return torch.stack([embeddings[i % len(embeddings)] for i in range(num_kept)])
    return torch.nn.functional.normalize(embeddings.mean(dim=0, keepdim=True), dim=-1)


def embed_assets(
    assets: Sequence[Asset], keys: Sequence[str], views: ViewMaker, clip: Clip, num_kept: int, path: Path
) -> Iterator[str]:
    """Embed assets one by one, yielding their names, and write them as a shard at the end.

    An asset whose mesh or renders are refused is left out with the reason; so is one that cannot be downloaded, or
    whose reader was killed, which the next build tries again. Where no asset can be downloaded the network is to blame,
    and the shard fails. On a GPU several assets are embedded at a time, and nothing is fetched before the end, so that
    the next ones are rendered meanwhile.
    """
    kept: list[int] = []
    waiting: list[Views] = []
    embedded: list[Tensor] = []
    refused: dict[str, str] = {}
    num_together = VIEWS_TOGETHER if clip.device.type == "cuda" else 1
    for i, asset in enumerate(assets):
        try:
            waiting.append(views(asset))
            kept.append(i)
            if sum(map(len, waiting)) >= num_together:
                embedded += embed_together(waiting, clip, num_kept)
                waiting = []
        except ReaderFailed as error:
            refused[keys[i]] = f"{NOT_READ}{error}"
        except AssetError as error:
            refused[keys[i]] = str(error)
        except DownloadError as error:
            refused[keys[i]] = f"{NOT_DOWNLOADED}{error}"
            if len(assets) > 1 and sum(reason.startswith(NOT_DOWNLOADED) for reason in refused.values()) == len(assets):
                raise ConnectionError(f"none of the {len(assets)} assets of a shard could be downloaded") from error
        yield asset.asset_id
    text = embed_captions([assets[i] for i in kept], clip).cpu().numpy().astype(np.float16)
    embedded += embed_together(waiting, clip, num_kept)
    image = np.zeros((0, num_kept, clip.embedding_dim), np.float16)
    if embedded:
        image = torch.stack(embedded).cpu().numpy().astype(np.float16)
    write_shard(path, Shard([keys[i] for i in kept], text, image, refused))


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard aside and rename it, so that a file of its name is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    metadata = {
        "keys": json.dumps(shard.keys),
        "refused": json.dumps(shard.refused),
        "sha256": _checksum(shard),
    }
    save_file({"text": shard.text, "image": shard.image}, aside, metadata)
    put_in_place(aside, path)


def read_shard(path: Path) -> Shard | None:
    """Read a shard; what is missing, cut short or altered is none."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            text, image = file.get_tensor("text"), file.get_tensor("image")
        shard = Shard(json.loads(metadata["keys"]), text, image, json.loads(metadata["refused"]))
        return shard if _checksum(shard) == metadata["sha256"] else None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None


def _checksum(shard: Shard) -> str:
    digest = hashlib.sha256(json.dumps([shard.keys, shard.refused]).encode())
    digest.update(np.ascontiguousarray(shard.text).tobytes())
    digest.update(np.ascontiguousarray(shard.image).tobytes())
    return digest.hexdigest()
