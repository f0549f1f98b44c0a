"""Licences of assets: what sources write, as the short codes of Objaverse; the filter; the attribution of a result.

A code is Sketchfab's own word as Objaverse's annotations carry it (`by`, `by-nc`, `cc0`, ...); what other sources write
("CC-BY-4.0 (http://...)", "MIT (repository)") is read into the same codes. A text that names several licences, as
"CC0-1.0 (mesh) AND CC-BY-4.0 (rig)", has several codes, and a filter lets it pass only if it allows all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from redream.records import Asset

UNKNOWN = "unknown"  # no licence is stated, or none that is listed here

NAMES = {
    "by": "CC BY",
    "by-sa": "CC BY-SA",
    "by-nd": "CC BY-ND",
    "by-nc": "CC BY-NC",
    "by-nc-sa": "CC BY-NC-SA",
    "by-nc-nd": "CC BY-NC-ND",
    "cc0": "CC0",
    "public-domain": "public domain",
    "mit": "MIT",
    "apache-2.0": "Apache-2.0",
    "free-st": "Sketchfab Free Standard",
    "st": "Sketchfab Standard",
    "ed": "Sketchfab Editorial",
    UNKNOWN: "licence unknown",
}

# The elements of a Creative Commons licence, in any order. Without "CC" before them they count only as a whole text, as
# Objaverse has them: "by someone" is no licence.
_ELEMENTS = r"(by(?:[- ](?:nc|sa|nd))*)\b(?:[- /]v?(\d\.\d))?"
_CREATIVE_COMMONS = re.compile(rf"(?:\bcc[ -]?|\blicenses/|\bcreative commons[ -])+{_ELEMENTS}|^{_ELEMENTS}$")
_LONG_WORDS = (
    ("attribution", "by"),
    ("noncommercial", "nc"),
    ("non-commercial", "nc"),
    ("sharealike", "sa"),
    ("share alike", "sa"),
    ("no derivatives", "nd"),
    ("noderivatives", "nd"),
    ("noderivs", "nd"),
)
_OTHERS = (
    ("cc0", re.compile(r"\bcc[- ]?0\b|\bcc-?zero\b|publicdomain/zero")),
    ("public-domain", re.compile(r"public[- ]domain(?!/zero)|\bpdm\b|publicdomain/mark")),
    ("mit", re.compile(r"\bmit\b")),
    ("apache-2.0", re.compile(r"\bapache[- ]?(?:license )?2")),
    ("free-st", re.compile(r"^free-st$|free standard")),
    ("st", re.compile(r"^st$")),
    ("ed", re.compile(r"^ed$|^editorial$")),
)
_ORDER = ("by", "nc", "sa", "nd")


def license_codes(text: str) -> tuple[str, ...]:
    """Read the codes of the licences that a text names, sorted; `("unknown",)` where it names none."""
    codes = {code for code, _ in _named(text)}
    return tuple(sorted(codes)) or (UNKNOWN,)


def parse_licenses(text: str) -> tuple[str, ...]:
    """Read a filter such as "cc0,by"; an empty text allows every licence and gives `()`.

    Raises:
        ValueError: a code that no licence has.
    """
    codes = tuple(dict.fromkeys(code.strip().lower() for code in text.split(",") if code.strip()))
    check_licenses(codes)
    return codes


def check_licenses(codes: Iterable[str]) -> None:
    """Raise `ValueError` for a code that no licence has, because a filter with it would quietly let nothing pass."""
    for code in codes:
        if code not in NAMES:
            raise ValueError(f"unknown licence {code!r}; use codes among {', '.join(NAMES)}")


def is_allowed(text: str, codes: Iterable[str]) -> bool:
    """Tell whether a filter of codes lets a licence text pass; an empty filter lets everything pass."""
    allowed = set(codes)
    return not allowed or allowed.issuperset(license_codes(text))


def license_name(text: str) -> str:
    """Name the licences of a text for people, with the versions that it states, as in "CC BY-NC 4.0"."""
    named = sorted(_named(text)) or [(UNKNOWN, "")]
    return " and ".join(f"{NAMES[code]} {version}".strip() for code, version in named)


def attribution(asset: Asset) -> str:
    """Say in one line whose work an asset is, under which licence, and where it comes from."""
    return f"{asset.asset_id} by {asset.author or 'an unnamed author'}, {license_name(asset.license)}, {asset.source}"


def _named(text: str) -> set[tuple[str, str]]:
    """Return the (code, version) pairs that a text names; the version is "" where none is stated."""
    text = " ".join(text.lower().replace("_", "-").split())
    for long, short in _LONG_WORDS:
        text = text.replace(long, short)
    named = {(code, "") for code, pattern in _OTHERS if pattern.search(text)}
    for match in _CREATIVE_COMMONS.finditer(text):
        elements, version = match[1] or match[3], match[2] or match[4]
        words = set(re.split("[- ]", elements))
        named.add(("-".join(word for word in _ORDER if word in words), version or ""))
    versions = {code for code, version in named if version}
    return {(code, version) for code, version in named if version or code not in versions}
