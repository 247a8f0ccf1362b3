"""The section about speed: what `eggs bench` measured."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from eggs_ptp.report import plots
from eggs_ptp.report.group import Group
from eggs_ptp.report.quality import Figure
from eggs_ptp.report.record import Kind, Record
from eggs_ptp.report.section import Section, Table
from eggs_ptp.report.words import bytes_text, plain

_PACKED = "packed"


class Timed(NamedTuple):
    """What a record of `eggs bench` says: of text generation its rates by form and a table, of products a table."""

    machine: str
    rates: dict[str, Figure]
    forms: Table | None
    products: Table | None


def speed(group: Group) -> Section:
    """Text generation and products, packed beside dense."""
    section = Section(f"{group.key}-speed", "Speed")
    for place, run in enumerate(group.runs):
        for index, record in enumerate(run.of(Kind.bench)):
            found = timed(record)
            if found is None:
                continue
            section.remarks.append(f"{run.label} on {found.machine} ({record.path.name}).")
            if found.forms is not None:
                rows = [plots.Dot(form, rate, place if form == _PACKED else None) for form, rate in found.rates.items()]
                name, title = f"{group.key}-speed-{place}-{index}", f"Text generation: {run.label}"
                section.pictures.append(plots.dots(name, title, "tokens a second, bars: the middle half", rows))
                section.tables.append(found.forms)
            if found.products is not None:
                section.folded.append(found.products)
    if section.is_empty:
        section.remarks.append(
            "Not measured. Masks alone make nothing faster: eggs bench DIR --record DIR.bench.json packs the model and "
            "times it beside the fastest dense one of this machine."
        )
    return section


def timed(record: Record) -> Timed | None:
    """Read a record of `eggs bench`; None of others."""
    if record.kind is not Kind.bench:
        return None
    generated: dict[str, Any] = record.data.get("generate") or {}
    products, machine = record.data["products"], record.data["hardware"]
    first: dict[str, Any] = generated or next(iter(products), {})
    threads = first.get("threads", "?")
    where = f"{machine.get('processor') or 'an unknown processor'}, {machine.get('cpus', '?')} CPUs"
    ratio(record)
    rates = {}
    for form, samples in generated.get("microseconds", {}).items():
        each = generated["new_tokens"] * 1e6 / np.asarray(samples, dtype=np.float64)
        low, middle, high = (float(rate) for rate in np.percentile(each, (25, 50, 75)))
        rates[form] = Figure(middle, low=low, high=high)
    return Timed(
        f"{where}, {threads} thread(s), torch {machine.get('torch', '?')}",
        rates,
        _forms(generated) if generated else None,
        _products(record) if products else None,
    )


class Ratio(NamedTuple):
    """How many times faster packed writes text than the fastest dense form, which, and whether that is trusted."""

    value: float
    trusted: bool
    over: str

    @property
    def text(self) -> str:
        """`1.21×`, with a question mark where samples spread too far."""
        return f"{self.value:.2f}×{'' if self.trusted else ' ?'}"


def ratio(record: Record) -> Ratio | None:
    """That of a record of `eggs bench`; None where it was not measured."""
    found = (record.data.get("generate") or {}).get("ratio")
    return Ratio(float(found["value"]), bool(found["trusted"]), str(found["over"])) if found else None


def _forms(generated: Mapping[str, Any]) -> Table:
    held = generated.get("linears_bytes", {})
    memory = {"packed": held.get("packed"), "dense stock": held.get("dense")}
    rows = [
        [form, plain(rate), f"{generated['spread'][form]:.1%}", bytes_text(memory.get(form))]
        for form, rate in generated["tokens_per_second"].items()
    ]
    found = generated["ratio"]
    doubt = "" if found["trusted"] else "; not to be trusted, samples spread too far"
    caption = (
        f"{generated['new_tokens']} new tokens after {generated['prompt_tokens']}, batch 1; packed is "
        f"{found['value']:.2f} times as fast as {found['over']}{doubt}"
    )
    return Table(caption, ["linears", ">tokens/s", ">spread", ">memory of the linears"], rows)


def _products(record: Record) -> Table:
    rows = []
    for product in record.data["products"]:
        for name, found in product["ratios"].items():
            packed, _, dense = name.partition(" over ")
            value = f"{found['value']:.2f}×{'' if found['trusted'] else ' ?'}"
            rows.append([f"{product['rows']}x{product['columns']}", str(product["batch"]), packed, dense, value])
    heads = ["shape", ">batch", "packed", "fastest dense", ">times as fast"]
    return Table(f"Products ({record.path.name}); ?: not to be trusted, samples spread too far", heads, rows)
