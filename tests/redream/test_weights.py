import pytest

from redream.weights import weights_digest, weights_path


def test_hub_ids_name_themselves() -> None:
    assert weights_path("owner/name@main") == weights_digest("owner/name@main") == "owner/name@main"


def test_an_unknown_miniature_is_refused_with_the_way_to_make_it() -> None:
    with pytest.raises(ValueError, match=r"redream\.mini\.train"):
        weights_path("mini:nothing")


def test_digest_follows_content_and_not_place(tmp_path) -> None:
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(content)
    first, same, other = (weights_digest(str(tmp_path / name)) for name in "abc")
    assert first == same != other
    (tmp_path / "a" / "model.safetensors").write_text("22")
    assert weights_digest(str(tmp_path / "a")) != first
