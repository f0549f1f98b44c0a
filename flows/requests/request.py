"""What a user asks for, checked at the door: `checked_request` accepts it or says in one sentence what is wrong.

Everything here is cheap, so that a typing error costs a second and not the start of an orchestrator. Nothing heavy is
imported.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redream.methods import unused_settings, users_of
from redream.overrides import with_overrides
from redream.presets import PRESETS
from redream.prior.layouts import refuse_other_models
from redream.records import MESH_SUFFIXES
from redream.settings import Method, RunConfig
from redream.weights import clip_identity, weights_path

DEFAULT_OUT = os.environ.get("REDREAM_OUT") or "redream-out"
RUNNERS = ("local", "dask", "ray")
MAX_PROMPT_CHARS = 1000
MAX_ASSETS = 20
# Format characters that change nothing about a text but its bytes. The two joiners belong to scripts and emoji, except
# at the ends; tag characters to flags.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
_JOINERS = ("\u200c", "\u200d", " ")
_BLANKS = re.compile(r"[^\S\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")  # any that are no control characters
_MARKS = re.compile(r"<\|[^|<>]*\|>|</?(start|end|pad|unk|s|mask|start_of_text|end_of_text)>", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A checked request, with the settings that follow from it."""

    prompt: str
    preset: str
    method: str
    seed: int
    out: Path
    index: str
    assets: tuple[str, ...]
    settings: dict[str, Any]
    config: RunConfig

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that ask for the same again."""
        return {
            "prompt": self.prompt,
            "preset": self.preset,
            "method": self.method,
            "seed": self.seed,
            "index": self.index,
            "assets": list(self.assets),
            "settings": self.settings,
        }


def checked_request(
    prompt: str,
    preset: str = "mini",
    method: str = "redream",
    seed: int = 0,
    out: str | Path = DEFAULT_OUT,
    index: str = "",
    assets: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Request:
    """Accept a request or raise a `ValueError` whose message names what is wrong and what to do."""
    text = checked_prompt(prompt)
    config = checked_config(preset, method, settings or {})
    if unused := unused_settings(method, settings or {}):
        raise ValueError(f"method {method} does not use {unused[0]}; {_listed(users_of(unused[0]))}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}; it must be within [0, 2^63)")
    if assets and index:
        raise ValueError("--asset and --index exclude each other: with an asset of your own nothing is retrieved")
    if len(assets) > MAX_ASSETS:
        raise ValueError(f"{len(assets)} assets are given; at most {MAX_ASSETS} are taken")
    if assets and (config.retrieval.use or config.retrieval.leave_out):
        raise ValueError("--asset excludes --use and --not: with an asset of your own nothing is retrieved")
    if config.retrieval.use and method != "redream":
        raise ValueError(f"--use needs --method redream; {method} uses no assets")
    if both := set(config.retrieval.use) & set(config.retrieval.leave_out):
        raise ValueError(f"--use and --not both name {min(both)}")
    if assets and method != "redream":
        raise ValueError(f"--asset needs --method redream; {method} uses no assets")
    resolved = tuple(str(checked_asset(asset)) for asset in assets)
    if method == "redream" and not assets:
        checked_index(index, preset, config)
    checked_weights(config)
    return Request(
        prompt=text,
        preset=preset,
        method=method,
        seed=seed,
        out=checked_out(out),
        index=str(Path(index).resolve()) if index else "",
        assets=resolved,
        settings=dict(settings or {}),
        config=config,
    )


def checked_prompt(prompt: str) -> str:
    """Return the prompt in its normal form: NFC, single blanks, nothing invisible around it.

    Prompts that look alike are the same prompt, so that they have the same stage keys.
    """
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", prompt)).strip()
    text = _BLANKS.sub(" ", text).strip("".join(_JOINERS))
    if not text.strip():
        raise ValueError('the prompt is empty; describe an object in a few words, such as "a turquoise robot"')
    if len(text) > MAX_PROMPT_CHARS:
        raise ValueError(
            f"the prompt has {len(text):,} characters; at most {MAX_PROMPT_CHARS:,} are taken, and the text "
            "encoder reads about the first 300 of them"
        )
    # Format characters, which hold emoji together, may pass; controls, halves of surrogates and line breaks may not.
    bad = next((character for character in text if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise ValueError(f"the prompt contains the control character {bad!r}; use one line of plain text")
    if (mark := _MARKS.search(text)) is not None:
        raise ValueError(f"the prompt contains {mark[0]!r}, by which text encoders mark a prompt's ends; leave it out")
    return text


def checked_config(preset: str, method: str, settings: Mapping[str, Any]) -> RunConfig:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; {_choices(preset, list(PRESETS))}")
    methods = list(typing.get_args(Method))
    if method not in methods:
        raise ValueError(f"unknown method {method!r}; {_choices(method, methods)}")
    if "distill.method" in settings:
        raise ValueError("distill.method is set with --method, not with --set")
    return with_overrides(PRESETS[preset](), {"distill.method": method, **settings})


def _listed(methods: Sequence[str]) -> str:
    return f"{methods[0]} does" if len(methods) == 1 else f"{', '.join(methods[:-1])} and {methods[-1]} do"


def checked_weights(config: RunConfig) -> None:
    """Refuse names of miniature weights that do not exist, and priors that are another kind of model."""
    for model in (
        config.prior.model,
        config.retrieval.clip_model,
        *config.evaluation.clip_models,
        *config.evaluation.lpips_backbones,
    ):
        weights_path(model)
    refuse_other_models(config.prior.model, config.prior.config)
    if config.distill.method == "mvdream":
        if not config.mvdream.model:
            raise ValueError(
                "--method mvdream needs a multi-view prior; name its weights with --set mvdream.model=…, a folder or a "
                "hub id whose licence you accept"
            )
        weights_path(config.mvdream.model)


def parsed_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Read `section.field=value` arguments; a value is a Python literal, or else the text itself."""
    settings = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or "." not in name:
            raise ValueError(
                f"--set {assignment!r} is not of the form section.field=value, such as --set distill.num_steps=500"
            )
        settings[name.strip()] = _literal(text.strip())
    return settings


def split_ids(texts: Sequence[str]) -> list[str]:
    """Read ids that are separated by commas, or given by repeating an option; each counts once."""
    return list(dict.fromkeys(each.strip() for text in texts for each in text.split(",") if each.strip()))


def checked_asset(asset: str, option: str = "--asset") -> Path:
    """Return the absolute path of a mesh file; its content is read later, by `load_mesh`."""
    path = Path(asset)
    if not path.is_file():
        raise ValueError(f"{option} {asset}: there is no such file")
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise ValueError(f"{option} {asset}: not a mesh file; its name must end in {', '.join(MESH_SUFFIXES)}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{option} {asset}: the file cannot be read; check its permissions")
    if path.stat().st_size == 0:
        raise ValueError(f"{option} {asset}: the file is empty")
    return path.resolve()


def checked_index(index: str, preset: str, config: RunConfig) -> None:
    """Check that there is an index to search and that it was made with the model that will search it."""
    checked_index_place(index, preset, config)
    if not index:
        return
    try:
        made_with = json.loads((Path(index) / "manifest.json").read_text(encoding="utf-8"))["clip_model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--index {index}: its manifest.json is damaged; rebuild the index") from error
    wanted = clip_identity(config.retrieval.clip_model)
    if made_with != wanted:
        raise ValueError(
            f"--index {index} was made with CLIP {made_with}, this run searches with {wanted}; rebuild the index, or "
            "choose its model with --set retrieval.clip_model=…"
        )


def checked_index_place(index: str, preset: str, config: RunConfig) -> None:
    """Check that there is an index to search; opening it tells the rest."""
    if not index:
        if not config.retrieval.clip_model.startswith("mini:"):
            raise ValueError(
                f"preset {preset} searches an index of your own; name it with --index DIR, or start from "
                "a mesh with --asset FILE"
            )
        return
    if not (Path(index) / "manifest.json").is_file():
        raise ValueError(f"--index {index}: no index there (it has no manifest.json)")


def checked_runner(name: str) -> str:
    """Accept a runner of an index's build."""
    if name not in RUNNERS:
        raise ValueError(f"unknown runner {name!r}; choose {', '.join(RUNNERS)}")
    return name


def checked_out(out: str | Path) -> Path:
    """Create the output folder and return its absolute path, if files can be written there."""
    path = Path(out).absolute()
    if "PREFECT__FLOW_RUN_ID" in os.environ and not Path(out).is_absolute():  # Prefect deletes its working folder
        raise ValueError(f"out is {out!r}; a deployed run needs an absolute folder, or REDREAM_OUT set on its worker")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written ({error.strerror}); choose another folder") from error
    return path


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text, text)


def _choices(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}There are: {', '.join(known)}"
