"""Licences as sources write them, the filter, and the attribution that a result carries."""

from __future__ import annotations

import pytest

from redream.records import Asset
from redream.retrieval.licenses import attribution, is_allowed, license_codes, license_name, parse_licenses


@pytest.mark.parametrize(
    ("text", "codes", "name"),
    [
        ("by", ("by",), "CC BY"),
        ("by-nc-sa", ("by-nc-sa",), "CC BY-NC-SA"),
        ("cc0", ("cc0",), "CC0"),
        ("CC-BY-4.0 (http://creativecommons.org/licenses/by/4.0/)", ("by",), "CC BY 4.0"),
        ("http://creativecommons.org/licenses/by-nc/3.0/", ("by-nc",), "CC BY-NC 3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", ("cc0",), "CC0"),
        ("Creative Commons Attribution-NonCommercial 4.0", ("by-nc",), "CC BY-NC 4.0"),
        ("CC BY-SA-NC", ("by-nc-sa",), "CC BY-NC-SA"),
        ("CC0-1.0 (mesh) AND CC-BY-4.0 (rig, conversion)", ("by", "cc0"), "CC BY 4.0 and CC0"),
        ("CC-BY-4.0 with Cesium trademark limits", ("by",), "CC BY 4.0"),
        ("public domain", ("public-domain",), "public domain"),
        ("MIT (repository)", ("mit",), "MIT"),
        ("made by someone", ("unknown",), "licence unknown"),
        ("by someone", ("unknown",), "licence unknown"),
        ("all rights reserved", ("unknown",), "licence unknown"),
        ("", ("unknown",), "licence unknown"),
    ],
)
def test_what_sources_write_is_read_into_codes(text: str, codes: tuple[str, ...], name: str):
    assert license_codes(text) == codes and license_name(text) == name


def test_a_filter_lets_an_asset_pass_only_if_it_allows_all_its_licences():
    both = "CC0-1.0 (mesh) AND CC-BY-4.0 (rig)"
    assert is_allowed(both, ("by", "cc0")) and not is_allowed(both, ("cc0",)) and not is_allowed(both, ("by",))
    assert not is_allowed("by-nc", ("by",)), "a stricter licence is another one"
    assert not is_allowed("", ("by",)) and is_allowed("", ()) and is_allowed("", ("unknown",))


def test_a_filter_is_read_from_a_list_of_codes_and_unknown_ones_are_refused():
    assert parse_licenses(" CC0, by,by ") == ("cc0", "by") and parse_licenses("") == ()
    with pytest.raises(ValueError, match="unknown licence 'cc-by-4.0'; use codes among by, by-sa"):
        parse_licenses("cc-by-4.0")


def test_a_result_names_its_author_licence_and_source_in_one_line():
    page = "https://sketchfab.com/3d-models/x"
    asset = Asset(asset_id="x", mesh_path="/x.glb", caption="a chair", source=page, license="by", author="Ada")
    assert attribution(asset) == f"x by Ada, CC BY, {page}"
