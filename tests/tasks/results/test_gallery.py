"""What a batch shows of its objects in Prefect."""

from __future__ import annotations

from pathlib import Path

from redream.pages.gallery import GalleryItem
from tasks.results.gallery import MAX_PICTURES, gallery_markdown


def test_each_object_has_a_row_whose_texts_are_no_markup() -> None:
    hostile = GalleryItem(prompt="a | [b](http://evil)\n<img src=x>", state="failed", reason="| no\nmesh")
    made = GalleryItem(prompt="a cube", state="done", thumbnail=b"\xff\xd8", metrics={"clip": 0.5})
    text = gallery_markdown([(hostile, ""), (made, "http://127.0.0.1:5000/#/run")], "1 done", Path("out/gallery.html"))
    rows = text.splitlines()[6:]
    assert len(rows) == 2
    assert "[b](http" not in rows[0] and "<img" not in rows[0].replace("\\<", "")
    assert all(row.replace("\\|", "").count("|") == 4 for row in rows)
    assert rows[1].endswith("a cube; done [MLflow](http://127.0.0.1:5000/#/run) | clip 0.500 |")
    assert "![](data:image/jpeg;base64,/9g=)" in rows[1]


def test_pictures_of_a_large_batch_are_left_out_at_some_point() -> None:
    items = [(GalleryItem(prompt="a cube", state="done", thumbnail=b"\xff\xd8"), "")] * (MAX_PICTURES + 5)
    assert gallery_markdown(items, "", Path("gallery.html")).count("data:") == MAX_PICTURES
