import re
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest

from eggs_ptp.core.pattern import parse_pattern
from eggs_ptp.errors import BackendError, CheckpointError
from eggs_ptp.report import plots
from eggs_ptp.report.connectivity import BINS, Corner
from eggs_ptp.report.palette import DARK, HEAT_LEVELS, LIGHT
from eggs_ptp.report.quality import Measurement

NAME = "a<b> $x_1$"  # as a folder may be called


def dots(name="p"):
    rows = [
        plots.Dot("dense", Measurement(20.0, 0.4), None),
        plots.Dot(NAME, Measurement(28.0, low=27.0, high=30.0), 0),
    ]
    return plots.dots(name, f"Title of {NAME}", "perplexity", rows, 20.0)


def heat_map():
    errors = {(block, linear): 0.01 * block + 0.002 for block in range(3) for linear in ("q", "k")}
    return plots.heat_map("h", "Heat", errors, 0.022, ["q", "k"])


def tree(picture):
    return ElementTree.fromstring(picture.svg())  # noqa: S314  trusted input


def texts(picture):
    return {"".join(element.itertext()) for element in tree(picture).iter() if element.tag.endswith("}text")}


def test_an_svg_has_the_colours_and_the_font_of_the_page_and_a_title_and_description():
    picture = dots()
    svg = picture.svg()
    assert not {colour for colour in LIGHT.values() if colour in svg}
    assert "var(--mark-0)" in svg
    assert "var(--ink)" in svg
    assert {"dense", NAME, "20.00 ± 0.40", "28"} <= texts(picture)
    assert "DejaVu" not in svg
    root = tree(picture)
    text_by_id = {element.get("id"): element.text for element in root.iter()}
    title, description = (text_by_id[label] for label in root.get("aria-labelledby").split())
    assert title == f"Title of {NAME}"
    assert description == f"perplexity. dense: 20.00 ± 0.40; {NAME}: 28."
    assert root.get("role") == "img"


def test_ids_of_two_pictures_differ_and_references_resolve():
    first = dots("one").svg()
    second = dots("two").svg()
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert len(ids[0]) == len(re.findall(r'\bid="', first))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', first)) <= ids[0]


def test_drawing_does_not_depend_on_the_users_settings():
    first = dots().svg()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "black"}):
        assert dots().svg() == first


def test_a_heat_map_has_a_cell_per_matrix_with_its_number_and_a_hint():
    picture = heat_map()
    cells = [element for element in tree(picture).iter() if (element.get("id") or "").startswith("h-cell-")]
    hints = {cell.get("id"): cell[0].text for cell in cells}
    assert len(hints) == 6
    assert hints["h-cell-2-1"] == "block 2, k: 0.02200"
    assert "0.022" in texts(picture)
    fills = {cell.get("id"): re.search(r"var\(--heat-(\d)\)", ElementTree.tostring(cell).decode())[1] for cell in cells}
    assert [int(fills[f"h-cell-{row}-0"]) for row in range(3)] == [0, int(0.012 / 0.022 * HEAT_LEVELS), HEAT_LEVELS - 1]
    assert "Highest 0.02200 in block 2" in picture.description


def test_the_numbers_of_a_deep_heat_map_are_only_hints():
    errors = {(block, "q"): 0.001 * block for block in range(32)}
    picture = plots.heat_map("h", "Heat", errors, 0.031, ["q"])
    assert len(picture.hints) == 32
    assert "0.031" not in {text for text in texts(picture) if len(text) == 5} - {"0.031"}
    assert not any(re.fullmatch(r"0\.0\d\d", text) for text in texts(picture) if text not in {"0.01", "0.021", "0.031"})


def test_ridges_have_a_panel_per_linear_and_describe_their_width():
    narrow, wide = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    narrow[BINS // 2] = 10
    wide[[BINS // 5, 4 * BINS // 5]] = 5
    picture = plots.ridges("r", "Ridges", {"a": {"x.q": narrow, "x.k": narrow}, "b": {"x.q": wide}})
    assert {"q", "k", "a", "b"} <= texts(picture)
    assert "a: standard deviation 0.000; b: standard deviation 0.300" in picture.description


def test_a_corner_shows_kept_weights_and_groups():
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=bool)
    corner = Corner("m", mask, parse_pattern("2:4"))
    picture = plots.mask_corners("c", "Corner", {"a": corner, "b": Corner("m", mask, None)})
    path = next(iter(re.findall(r'<path d="([^"]+)"[^>]*var\(--mark-0\)', picture.svg())))
    assert path.count("M") == 2  # kept neighbours are one rectangle
    assert picture.description.endswith("a: 50% kept, 2:4 in every group; b: 50% kept.")


def test_lines_have_a_legend_where_there_are_several():
    picture = plots.lines("l", "Lines", "error", {"_a": {0: 0.1, 1: 0.3}, "b": {0: 0.2, 1: 0.1}}, [0, 1])
    assert {" _a", "b"} <= texts(picture)
    assert "_a: highest 0.3000 in block 1, last 0.3000" in picture.description


def test_files_are_light_on_white(tmp_path):
    svg, png = heat_map().write(tmp_path / "plots")
    assert (svg.name, png.name) == ("h.svg", "h.png")
    assert LIGHT["heat-8"] in svg.read_text()
    assert "var(" not in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        heat_map().write(tmp_path / "file")


def test_without_matplotlib_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=r"pip install matplotlib jinja2"):
        dots()


def test_every_colour_has_a_dark_version_and_light_colours_differ():
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)  # a colour of a picture is identified by its light value


@pytest.mark.parametrize(("text", "shortened"), [("plain", "plain"), ("a" * 20 + "b" * 20, "a" * 10 + "…" + "b" * 11)])
def test_long_labels_keep_their_ends(text, shortened):
    assert plots.shorten(text) == shortened
