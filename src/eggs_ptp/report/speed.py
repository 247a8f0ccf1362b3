"""The section on speed: the measurements of `eggs bench`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from eggs_ptp.report import plots
from eggs_ptp.report.model_group import ModelGroup
from eggs_ptp.report.number_format import format_bytes, format_number
from eggs_ptp.report.quality import Measurement
from eggs_ptp.report.record_files import Kind, Record
from eggs_ptp.report.section import Section, Table

_PACKED = "packed"


class BenchRecord(NamedTuple):
    """The content of a record of `eggs bench`.

    Attributes:
        machine: The machine, in words.
        rates: Tokens per second by form (packed, or a dense one).
        generation: Table of text generation.
        products: Table of matrix products.
    """

    machine: str
    rates: dict[str, Measurement]
    generation: Table | None
    products: Table | None


def speed_section(group: ModelGroup) -> Section:
    """Show text generation and matrix products, packed and dense."""
    section = Section(f"{group.key}-speed", "Speed")
    for run_index, run in enumerate(group.runs):
        for record_index, record in enumerate(run.records_of(Kind.bench)):
            bench = read_bench(record)
            if bench is None:
                continue
            section.remarks.append(f"{run.label} on {bench.machine} ({record.path.name}).")
            if bench.generation is not None:
                dots = [
                    plots.Dot(form, rate, run_index if form == _PACKED else None) for form, rate in bench.rates.items()
                ]
                name = f"{group.key}-speed-{run_index}-{record_index}"
                title = f"Text generation: {run.label}"
                section.pictures.append(plots.dots(name, title, "tokens per second, bars: interquartile range", dots))
                section.tables.append(bench.generation)
            if bench.products is not None:
                section.collapsed.append(bench.products)
    if section.is_empty:
        section.remarks.append(
            "Not measured. A mask by itself makes nothing faster: eggs bench DIR --record DIR.bench.json packs the "
            "model and compares it with the fastest dense form on this machine."
        )
    return section


def read_bench(record: Record) -> BenchRecord | None:
    """Read a record of `eggs bench`; None for others."""
    if record.kind is not Kind.bench:
        return None
    generated: dict[str, Any] = record.data.get("generate") or {}
    products = record.data["products"]
    hardware = record.data["hardware"]
    first_measurement: dict[str, Any] = generated or next(iter(products), {})
    threads = first_measurement.get("threads", "?")
    processor = f"{hardware.get('processor') or 'an unknown processor'}, {hardware.get('cpus', '?')} CPUs"
    read_speedup(record)  # raises if the record is broken
    rates = {}
    for form, microseconds in generated.get("microseconds", {}).items():
        samples = generated["new_tokens"] * 1e6 / np.asarray(microseconds, dtype=np.float64)
        low, median, high = (float(rate) for rate in np.percentile(samples, (25, 50, 75)))
        rates[form] = Measurement(median, low=low, high=high)
    return BenchRecord(
        machine=f"{processor}, {threads} thread(s), torch {hardware.get('torch', '?')}",
        rates=rates,
        generation=_generation_table(generated) if generated else None,
        products=_product_table(record) if products else None,
    )


class Speedup(NamedTuple):
    """How many times faster packed linears generate text than the fastest dense form (`over`)."""

    value: float
    trusted: bool
    over: str

    @property
    def text(self) -> str:
        """`1.21×`, with a question mark if the samples vary too much."""
        return _speedup_text(self.value, self.trusted)


def read_speedup(record: Record) -> Speedup | None:
    """Read the speedup of text generation from a record of `eggs bench`; None if it was not measured."""
    ratio = (record.data.get("generate") or {}).get("ratio")
    return Speedup(float(ratio["value"]), bool(ratio["trusted"]), str(ratio["over"])) if ratio else None


def _speedup_text(value: float, trusted: bool) -> str:
    return f"{value:.2f}×" if trusted else f"{value:.2f}× ?"


def _generation_table(generated: Mapping[str, Any]) -> Table:
    linears = generated.get("linears_bytes", {})
    memory = {"packed": linears.get("packed"), "dense stock": linears.get("dense")}
    rows = [
        [form, format_number(rate), f"{generated['spread'][form]:.1%}", format_bytes(memory.get(form))]
        for form, rate in generated["tokens_per_second"].items()
    ]
    ratio = generated["ratio"]
    doubt = "" if ratio["trusted"] else "; not reliable, the samples vary too much"
    caption = (
        f"{generated['new_tokens']} new tokens after {generated['prompt_tokens']}, batch 1; packed is "
        f"{ratio['value']:.2f} times as fast as {ratio['over']}{doubt}"
    )
    return Table(caption, ["linears", ">tokens/s", ">spread", ">memory of the linears"], rows)


def _product_table(record: Record) -> Table:
    rows = []
    for product in record.data["products"]:
        for name, ratio in product["ratios"].items():
            packed, _, dense = name.partition(" over ")
            rows.append(
                [
                    f"{product['rows']}x{product['columns']}",
                    str(product["batch"]),
                    packed,
                    dense,
                    _speedup_text(ratio["value"], ratio["trusted"]),
                ]
            )
    heads = ["shape", ">batch", "packed", "fastest dense", ">speedup"]
    return Table(f"Matrix products ({record.path.name}); ?: not reliable, the samples vary too much", heads, rows)
