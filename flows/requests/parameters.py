"""The limits of the flows' parameters, as Prefect's form shows them and its server enforces them.

The server refuses a bad value before a run exists. What it cannot know, such as whether two settings go together,
`flows/requests/request.py` checks when the flow starts.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import Field, StringConstraints, TypeAdapter
from pydantic.json_schema import SkipJsonSchema

from flows.requests.columns import STUDIES
from flows.requests.plan import NEEDS
from flows.requests.request import MAX_ASSETS, MAX_PROMPT_CHARS
from redream.presets import PRESETS
from redream.settings import Method, RunConfig

PresetName = Annotated[str, Field(json_schema_extra={"enum": [*PRESETS]})]
MethodName = Annotated[str, Field(json_schema_extra={"enum": [*get_args(Method)]})]
MethodNames = Annotated[list[MethodName], Field(max_length=100)]
StudyName = Annotated[str, Field(json_schema_extra={"enum": ["", *STUDIES]})]

# One line of text with something to see in it. Rust, Python and JavaScript read these the same way.
_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
Prompt = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=MAX_PROMPT_CHARS, pattern=rf"^[^{_CONTROLS}]*[^\s{_CONTROLS}][^{_CONTROLS}]*$"
    ),
]
Prompts = Annotated[list[Prompt], Field(max_length=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=1000)]
Processes = Annotated[int, Field(ge=0, le=1000)]
Place = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00-\x1f]*$")]
Assets = Annotated[list[Annotated[Place, StringConstraints(min_length=1)]], Field(max_length=MAX_ASSETS)]
SETTINGS: dict[str, Any] = {  # the JSON schema of each; the method has a parameter of its own
    f"{section}.{name}": TypeAdapter(hint).json_schema()
    for section, config in get_type_hints(RunConfig).items()
    for name, hint in get_type_hints(config, include_extras=True).items()
    if (section, name) != ("distill", "method")
}
LIMITS: dict[str, Any] = {
    "propertyNames": {"enum": sorted(SETTINGS)},
    # As `properties`, the page's form would have a field for each of them, filled with nothing.
    "patternProperties": {f"^{re.escape(name)}$": schema for name, schema in SETTINGS.items()},
}
Settings = Annotated[dict[str, Any], Field(json_schema_extra=LIMITS)]
# As `new_run_id` makes them: no dots and no slashes, so that none leaves the folder of the runs.
RunId = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[a-z0-9][a-z0-9-]*$")]
# What commands and batches say to each other has no field in Prefect's form.
HiddenPlace = Annotated[Place, SkipJsonSchema()]
BatchId = Annotated[str, StringConstraints(max_length=100, pattern=r"^[a-z0-9-]*$"), SkipJsonSchema()]
StageName = Annotated[str, Field(json_schema_extra={"enum": ["", *NEEDS]})]
RunIds = Annotated[list[RunId], Field(min_length=1, max_length=1000)]
Licenses = Annotated[list[Annotated[str, StringConstraints(max_length=20)]], Field(max_length=20)]
ViewsName = Annotated[str, Field(json_schema_extra={"enum": ["all", "none"]})]
Prompts = Annotated[list[Prompt], Field(max_length=100_000)]
CatalogName = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]*$")]
