import json
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from synthetic_records import bench, comparison, diagnosis, evaluation, perplexity, pruned_run, sample, write_record

from eggs_ptp.errors import BackendError, ModelError
from eggs_ptp.report.number_format import format_bytes
from eggs_ptp.report.page import render_html, render_markdown
from eggs_ptp.report.report import make_report
from eggs_ptp.sparse.packed_config import METHOD

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "link"}
ONLY_PERPLEXITY = {"fidelity": None, "tasks": {}, "paired": None}


class Page(HTMLParser):
    """The elements of a page, in order: tag, attributes, text inside."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.open = []
        self.mismatched = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0] != tag:
            self.mismatched.append(tag)

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, *tags):
        return [element for element in self.elements if element[0] in tags]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    runs = [pruned_run(folder / "a"), pruned_run(folder / "b", method="ria")]
    write_record(folder / "a.evaluation.json", evaluation(str(runs[0]), "org/base", 28.0))
    write_record(folder / "b.evaluation.json", evaluation(str(runs[1]), "org/base", 31.0))
    write_record(folder / "a.bench.json", bench(str(runs[0])))
    write_record(folder / "a.diagnosis.json", diagnosis(str(runs[0])))
    write_record(folder / "a.sample.json", sample(str(runs[0]), EVIL))
    requested = [
        write_record(folder / "more" / "compare.json", comparison("org/base")),
        write_record(folder / "more" / "dense.json", sample("org/base", " upon a time")),
        write_record(folder / "more" / "cut.json", '{"model": "a"'),
        write_record(folder / "more" / "stray.json", sample("org/stray", "")),
        write_record(folder / "more" / "bad.json", {**bench(str(runs[0])), "products": [{"rows": 1}]}),
    ]
    return make_report(runs, requested)


@pytest.fixture(scope="module")
def text(report):
    return render_html(report)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_every_element_is_closed(page):
    assert page.mismatched == []
    assert page.open == []


def test_headings_come_in_order(page):
    levels = [int(tag[1]) for tag, _, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    titles = [text for _, _, text in page.all("h3")]
    assert titles == [
        "At a glance", "Quality", "Output error by layer", "Connectivity", "Speed", "Methods compared",
        "Generated text", "Recipe and provenance",
    ]  # fmt: skip


def test_ids_are_unique_and_references_resolve(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {
        label for _, attributes, _ in page.elements for label in attributes.get("aria-labelledby", "").split()
    }
    references |= {attributes["href"][1:] for tag, attributes, _ in page.elements if tag == "a"}
    assert references
    assert references <= set(ids)


def test_tables_have_scopes_and_a_name_and_scroll_inside_their_container(page):
    tables = page.all("table")
    assert len(tables) > 8
    assert all("aria-labelledby" in attributes for _, attributes, _ in tables)
    assert {attributes.get("scope") for _, attributes, _ in page.all("th")} == {"col", "row"}
    wide = [
        attributes for _, attributes, _ in page.elements if attributes.get("class") == "wide" and "role" in attributes
    ]
    assert len(wide) >= len(tables)
    assert all(attributes["tabindex"] == "0" and attributes["role"] == "region" for attributes in wide)


def test_the_page_needs_no_network(text):
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in text
    assert not re.search(r"<(img|iframe|object|embed|video)\b|@import|url\((?!#)", text)


def test_untrusted_text_is_escaped(report, text, page):
    assert EVIL not in text
    assert len(page.all("script")) == 1
    assert any(EVIL in text for _, _, text in page.all("blockquote"))
    assert r"\<script\>" in render_markdown(report)


def test_the_numbers_of_the_records_are_shown(page):
    cells = {text for _, _, text in page.all("td", "th")}
    assert {
        "28.00 ± 0.56",
        "31.00 ± 0.62",
        "1.400",
        "1.550",
        "0.3100 ± 0.0040",
        "0.600 ± 0.050",
        "28.00 ± 0.30",
    } <= cells
    assert {
        "1.370 to 1.430",
        "1.91×",
        "13 of 14",
        "0.07110",
        "0.05110",
        "0.03110",
        "600.0 kB",
        "290.9",
        "1 minute and 15 seconds",
        "812.0 MB",
        "hash of ria",
    } <= cells
    cards = {text for _, attributes, text in page.elements if attributes.get("class") == "value"}
    assert cards == {"28.00 ± 0.56", "50.0%", "1.91×"}
    assert any('method = "ria"' in text for _, _, text in page.all("code"))


def test_every_section_has_its_pictures(report):
    names = {picture.name for picture in report.pictures}
    assert names == {
        "m0-perplexity-0", "m0-fidelity-0", "m0-fidelity-1", "m0-hidden", "m0-task-0", "m0-error", "m0-heat-0",
        "m0-heat-1", "m0-degrees", "m0-speed-0-0",
    }  # fmt: skip


def test_one_verdict_comes_first(page):
    verdicts = [text for _, attributes, text in page.elements if attributes.get("class") == "verdict"]
    assert verdicts[0] == (
        "Best of 2, a (eggs+, 2:4): 1.40 times dense: a clear loss; check it on your own task; try a milder pattern, "
        "more calibration text."
    )
    assert verdicts[1:] == [
        "Lowest perplexity: wanda at 2:4, 1.40 times dense: a clear loss; check it on your own task."
    ]


def test_without_the_dense_model_there_is_no_ratio(tmp_path):
    run = pruned_run(tmp_path / "a")
    write_record(tmp_path / "a.json", {**evaluation(str(run), "org/base"), **ONLY_PERPLEXITY, "reference": None})
    page = Page(render_html(make_report([run])))
    (verdict,) = [text for _, attributes, text in page.elements if attributes.get("class") == "verdict"]
    assert "has a perplexity of 28" in verdict
    assert "without the dense model's, it says little" in verdict


def test_the_size_of_a_packed_folder_beside_the_run_is_shown(tmp_path):
    run = pruned_run(tmp_path / "a")
    other = pruned_run(tmp_path / "a-packed")
    unrelated = pruned_run(tmp_path / "a-wanda", method="wanda")
    block = {METHOD: {}}
    assert not any("packed, in the folder" in note for note in _notes(run))
    for folder in (other, unrelated):
        _make_packed(folder, block)
    bytes_packed = format_bytes((other / "model.safetensors").stat().st_size)
    assert f"{bytes_packed} packed, in the folder beside it" in _notes(run)


def _notes(run):
    (_, sections), *_ = make_report([run]).groups
    return [note for card in sections[0].cards for note in card.notes]


def _make_packed(folder, block):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": block}))


def test_output_error_is_no_quality(report):
    sections = {section.title: section for section in report.groups[0][1]}
    assert "It is not the quality of the model" in " ".join(sections["Output error by layer"].remarks)
    glance = sections["At a glance"]
    assert not any("error" in head for table in glance.tables for head in table.heads)
    assert not any("output error" in note for card in glance.cards for note in card.notes)


def test_a_comparison_folder_is_drawn_as_a_table(tmp_path):
    folder = tmp_path / "records"
    common = {"model": "org/base", "versions": {}, "evaluation": perplexity(20.0)}
    write_record(folder / "dense.json", {**common, "perplexity": 20.0})
    for method, seed, value in (("wanda", 0, 30.0), ("wanda", 1, 34.0), ("ria", 0, 26.0)):
        run = {"row": [method], "column": "2:4", "method": method, "pattern": "2:4", "seed": seed, "recipe": "..."}
        costs = {"processor_seconds": 2.0 + seed, "peak_memory_bytes": 4e8}
        write_record(folder / f"{method}{seed}.json", {**common, **run, **costs, "perplexity": value})
    (folder / "broken.json").write_text("{")
    report = make_report([folder])
    page = Page(render_html(report))
    cells = [text for _, _, text in page.all("td", "th")]
    assert {"32.0 ± 2.8", "26", "1.60", "1.30", "2.5 s", "400.0 MB"} <= set(cells)
    assert [text for _, _, text in page.all("h3")] == ["Methods compared"]
    assert "Lowest perplexity: ria at 2:4, 1.30 times dense" in render_markdown(report)
    with_run = make_report([folder, pruned_run(tmp_path / "a")])
    assert [section.title for section in with_run.groups[0][1]].count("Methods compared") == 1


def test_skipped_files_are_named(report, page):
    (notice,) = [text for _, attributes, text in page.elements if attributes.get("class") == "notice"]
    reasons = {skipped.path.name: skipped.reason for skipped in report.skipped}
    assert sorted(reasons) == ["bad.json", "cut.json", "stray.json"]
    assert "about org/stray, which is not in this report" in reasons["stray.json"]
    assert "not what eggs bench writes" in reasons["bad.json"]
    assert all(name in notice for name in reasons)
    assert "`cut.json`" in render_markdown(report)


def test_runs_of_different_models_are_not_compared(tmp_path):
    runs = [pruned_run(tmp_path / "a"), pruned_run(tmp_path / "b", model="org/other")]
    for run, model in zip(runs, ("org/base", "org/other"), strict=True):
        write_record(tmp_path / f"{run.name}.evaluation.json", {**evaluation(str(run), model), **ONLY_PERPLEXITY})
    report = make_report(runs)
    page = Page(render_html(report))
    assert any("2 different models" in text and "not compared" in text for _, _, text in page.all("p"))
    assert [text for _, _, text in page.all("h2")] == ["Model org/base", "Model org/other"]
    assert [[run.label for run in group.runs] for group, _ in report.groups] == [["a"], ["b"]]
    descriptions = {picture.name: picture.description for picture in report.pictures}
    assert not any("perplexity" in name for name in descriptions)  # a plot of one point says no more than its table
    tables = [text for tag, _, text in page.all("table")]
    assert not any("a28.00" in text and "b28.00" in text for text in tables)
    assert "They are not compared" in render_markdown(report)


def test_perplexities_of_different_protocols_are_not_in_one_picture(tmp_path):
    runs = [pruned_run(tmp_path / "a"), pruned_run(tmp_path / "b", method="ria"), pruned_run(tmp_path / "c")]
    for run in runs:
        record = {**evaluation(str(run), "org/base", 30.0 + len(run.name)), **ONLY_PERPLEXITY}
        if run.name == "b":
            record["perplexity"]["sha256"] = "0123456789"
        write_record(tmp_path / f"{run.name}.json", record)
        write_record(run / "e.json", record)
    report = make_report(runs)
    plots = [picture for picture in report.pictures if "perplexity" in picture.name]
    assert len(plots) == 1  # one point is not drawn
    assert "b" not in re.findall(r"\b[abc]\b", plots[0].description)
    page = Page(render_html(report))
    headline = next(text for tag, _, text in page.all("table"))
    assert headline.count("31.00") == 2  # the run with another protocol has a dash
    assert any("do not compare" in text for _, _, text in page.all("p"))


def test_the_page_of_32_blocks_without_records_is_small_and_names_the_commands_to_run(tmp_path):
    report = make_report([pruned_run(tmp_path / "a", blocks=32)])
    text = render_html(report)
    assert len(text.encode()) < 5_000_000
    assert "Not evaluated: how good the model is, is not known" in text
    assert "not measured</p>" not in text
    assert "eggs bench DIR --record" in text
    assert "eggs evaluate" in text
    assert report.skipped == []


def test_a_folder_with_missing_or_broken_weights_is_shown_by_its_record(tmp_path):
    missing = pruned_run(tmp_path / "missing")
    broken = pruned_run(tmp_path / "broken")
    (missing / "model.safetensors").unlink()
    (broken / "model.safetensors").write_bytes(b"no tensors")
    report = make_report([missing, broken])
    assert [skipped.path for skipped in report.skipped] == [broken]
    assert "its weights" in report.skipped[0].reason
    text = render_html(report)
    assert "There are no weights in the folder of missing" in text
    assert "Output error: broken" in text


def test_an_unknown_matrix_is_refused(tmp_path):
    with pytest.raises(ModelError, match="--matrix lm_head"):
        make_report([pruned_run(tmp_path / "a")], matrices=["lm_head"])


def test_markdown_tables_are_well_formed(report):
    text = render_markdown(report)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    rules = [index for index, row in enumerate(rows) if set(row) <= set("|-:")]
    assert len(rules) > 8
    for index in rules:
        width = rows[index].count("|")
        assert len(re.findall(r"(?<!\\)\|", rows[index - 1])) == width
        assert len(re.findall(r"(?<!\\)\|", rows[index + 1])) == width
    assert "| a | eggs+ | 2:4 | 28.00 ± 0.56 | 1.400 |" in text


def test_without_jinja_the_error_names_what_to_install(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BackendError, match=r"pip install matplotlib jinja2"):
        render_html(report)


@pytest.mark.slow
def test_the_report_of_32_blocks_takes_less_than_ten_processor_seconds(tmp_path):
    """Processor time, which other programs do not lengthen; `benchmarks/report_speed.py` has 335 million weights."""
    run = pruned_run(tmp_path / "a", blocks=32, width=16)
    arguments = ["-c", "from eggs_ptp.cli.main import main; main()", "report", str(run), "-o", str(tmp_path / "a.html")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, *arguments], check=True, timeout=300)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10
