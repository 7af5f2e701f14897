"""Real tables behind the charts, cut from the files of vega-datasets (read directly, without pandas).

Each ``Table`` is one small group of rows of a source (a share in one year, one site of a field trial). It belongs to
the train or the test split by a hash of its key, so test charts show rows that no training chart shows.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from . import lexicon
from .base import package_folder

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
INSTALL = 'charts need vega-datasets: pip install "mini-internvl[synth]"'
_REGIONS = {
    "Northeast": "CT ME MA NH RI VT NJ NY PA", "Midwest": "IL IN MI OH WI IA KS MN MO NE ND SD",
    "South": "DE FL GA MD NC SC VA WV AL KY MS TN AR LA OK TX", "West": "AZ CO ID MT NV NM UT WY AK CA HI OR WA",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One labelled column of numbers, in the unit of the source, or thousands of it where numbers are long.

    ``key`` is source and group (``stocks/AAPL/2004``) and decides the split. Titles have at most 24 characters, labels
    8. Charts show consecutive labels of an ``ordered`` table; ``additive`` values are parts of a whole, as in a pie.
    """

    key: str
    title: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    ordered: bool
    additive: bool


def _rows(name: str) -> list[dict[str, Any]]:
    """Rows of one file, numbers still as the file has them."""
    folder = package_folder("vega_datasets")
    if folder is None:
        raise ModuleNotFoundError(INSTALL)
    path = folder / "_data" / name
    if path.suffix == ".json":
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return rows
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def _table(key: str, title: str, pairs: Iterable[tuple[str, float]], ordered: bool = False,
           additive: bool = False) -> Iterator[Table]:  # fmt: skip
    """One table, if at least three labels remain; labels shortened, repeated ones dropped, long numbers scaled."""
    kept: dict[str, float] = {}
    for label, value in pairs:
        kept.setdefault(label[:8].strip(" ."), value)
    if len(kept) < 3:
        return
    largest = max(abs(v) for v in kept.values())
    scale = 1000.0 if largest >= 10_000 else 1.0
    digits = 0 if largest / scale >= 100 else 1
    values = tuple(round(v / scale, digits) + 0.0 for v in kept.values())
    yield Table(key=key, title=title[:24], labels=tuple(kept), values=values, ordered=ordered, additive=additive)


def _grouped(rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, list[Any]]:
    """Rows by key, in order of first appearance."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)


def _month(date: str) -> str:
    """The name of the month of an ISO date."""
    return MONTHS[int(date[5:7]) - 1]


def _short(name: str) -> str:
    """A name without reference numbers, cut where a reader would cut it."""
    for long, brief in (("Wisconsin No. ", "Wisc "), ("Wisconsin", "Wiscons"), ("No. ", "No "),
                        ("Manchuria", "Manchur"), ("Renewables", "Renew"), ("Crookston", "Crooks")):  # fmt: skip
        name = name.replace(long, brief)
    return name


def _cars() -> Iterator[Table]:
    columns = {"Miles_per_Gallon": "Miles per gallon", "Displacement": "Engine size", "Horsepower": "Horsepower",
               "Weight_in_lbs": "Weight (lbs)", "Acceleration": "Acceleration"}  # fmt: skip
    for (year, origin), rows in _grouped(_rows("cars.json"), lambda r: (r["Year"][:4], r["Origin"])).items():
        for column, name in columns.items():
            words = [(r["Name"].split()[1:2] or [""], r[column]) for r in rows]
            models = [(w[0].capitalize(), float(v)) for w, v in words
                      if v is not None and w[0].isalpha() and 3 <= len(w[0]) <= 8]  # fmt: skip
            yield from _table(f"cars/{column}/{year}/{origin}", f"{name} {year}", models)
    for column, name in columns.items():
        for origin, rows in _grouped(_rows("cars.json"), lambda r: r["Origin"]).items():
            years = _grouped((r for r in rows if r[column] is not None), lambda r: r["Year"][:4])
            pairs = [(y, _mean(rs, column)) for y, rs in years.items()]
            yield from _table(f"cars/{column}/{origin}", f"{name}, {origin}", pairs, ordered=True)


def _barley() -> Iterator[Table]:
    rows = _rows("barley.json")
    for (site, year), group in _grouped(rows, lambda r: (r["site"], r["year"])).items():
        names = [(_short(r["variety"]), float(r["yield"])) for r in group]
        yield from _table(f"barley/{site}/{year}", f"Barley {site.split()[-1]} {year}", names, additive=True)
    for (variety, year), group in _grouped(rows, lambda r: (r["variety"], r["year"])).items():
        sites = [(_short(r["site"].split()[-1]), float(r["yield"])) for r in group]
        yield from _table(f"barley/{variety}/{year}", f"{_short(variety)[:12]} yield {year}", sites, additive=True)


def _weather() -> Iterator[Table]:
    columns = {"precipitation": "Rain", "temp_max": "High temp", "temp_min": "Low temp", "wind": "Wind"}
    rows = _rows("seattle-weather.csv")
    for column, name in columns.items():
        for year, group in _grouped(rows, lambda r: r["date"][:4]).items():
            months = _grouped(group, lambda r: int(r["date"][5:7]))
            pairs = [(MONTHS[m - 1], _mean(rs, column)) for m, rs in months.items()]
            yield from _table(f"weather/{column}/{year}", f"{name} in Seattle {year}", pairs, ordered=True)
            for month, days in months.items():
                pairs = [(str(int(r["date"][8:10])), float(r[column])) for r in days]
                title = f"{name} {MONTHS[month - 1]} {year}"
                yield from _table(f"weather/{column}/{year}/{month}", title, pairs, ordered=True)
    for (year, month), days in _grouped(rows, lambda r: (r["date"][:4], int(r["date"][5:7]))).items():
        kinds = Counter(r["weather"].capitalize() for r in days)
        pairs = [(k, float(n)) for k, n in sorted(kinds.items())]
        yield from _table(f"weather/days/{year}/{month}", f"Weather {MONTHS[month - 1]} {year}", pairs, additive=True)


def _hours() -> Iterator[Table]:
    for city, name in (("Seattle", "seattle-temps.csv"), ("Frisco", "sf-temps.csv")):
        for day, rows in _grouped(_rows(name), lambda r: r["date"][:10].replace("-", "/")).items():
            pairs = [(r["date"][11:16], float(r["temp"])) for r in rows[::3]]
            yield from _table(f"hours/{city}/{day}", f"{city} {_month(day)} {int(day[8:10])}", pairs, ordered=True)


def _money() -> Iterator[Table]:
    for (symbol, year), rows in _grouped(_rows("stocks.csv"), lambda r: (r["symbol"], r["date"][-4:])).items():
        pairs = [(r["date"][:3], float(r["price"])) for r in rows]
        yield from _table(f"stocks/{symbol}/{year}", f"{symbol} price {year}", pairs, ordered=True)
    for (month, year), rows in _grouped(_rows("stocks.csv"), lambda r: (r["date"][:3], r["date"][-4:])).items():
        pairs = [(r["symbol"], float(r["price"])) for r in rows]
        yield from _table(f"stocks/{month}/{year}", f"Stocks {month} {year}", pairs)
    for column in ("open", "high", "low", "close"):
        pairs = [(f"{int(r['date'][5:7])}/{int(r['date'][8:10])}", float(r[column])) for r in _rows("ohlc.json")]
        yield from _table(f"ohlc/{column}", f"Index {column} 2009", pairs, ordered=True)
    for column in ("wheat", "wages"):
        rows = _rows("wheat.json")
        for part in range(0, len(rows), 10):
            pairs = [(r["year"], float(r[column])) for r in rows[part : part + 10] if r.get(column) is not None]
            yield from _table(f"wheat/{column}/{part}", f"{column.capitalize()} in England", pairs, ordered=True)


def _jobs() -> Iterator[Table]:
    rows = _rows("us-employment.csv")
    for column in [c for c in rows[0] if c not in ("month", "nonfarm_change")]:
        for year, group in _grouped(rows, lambda r: r["month"][:4]).items():
            pairs = [(_month(r["month"]), float(r[column])) for r in group]
            short = column.replace("_", " ").split(" and ")[0].replace("transportation utilties", "").capitalize()
            yield from _table(f"jobs/{column}/{year}", f"{short[:14].strip()} jobs {year}", pairs, ordered=True)
    sectors = {"mining_and_logging": "Mining", "construction": "Building", "manufacturing": "Making",
               "wholesale_trade": "Trade", "retail_trade": "Retail", "utilities": "Power", "information": "Media",
               "financial_activities": "Finance", "leisure_and_hospitality": "Leisure", "government": "State",
               "education_and_health_services": "Health", "other_services": "Other"}  # fmt: skip
    for row in rows:
        pairs = [(label, float(row[c])) for c, label in sectors.items() if c in row]
        title = f"US jobs {_month(row['month'])} {row['month'][:4]}"
        yield from _table(f"sectors/{row['month']}", title, pairs, additive=True)


def _others() -> Iterator[Table]:
    for species, rows in _grouped(_rows("iris.json"), lambda r: r["species"]).items():
        for part in range(0, len(rows), 5):
            pairs = [(f"{leaf} {axis[0]}", _mean(rows[part : part + 5], leaf.lower() + axis))
                     for leaf in ("Sepal", "Petal") for axis in ("Length", "Width")]  # fmt: skip
            yield from _table(f"iris/{species}/{part}", f"Iris {species} (cm)", pairs, additive=True)
    crimea = _rows("crimea.json")
    for cause in ("wounds", "other", "disease"):
        for year, rows in _grouped(crimea, lambda r: r["date"][:4]).items():
            pairs = [(_month(r["date"]), float(r[cause])) for r in rows]
            yield from _table(f"crimea/{cause}/{year}", f"{cause.capitalize()} {year}", pairs, ordered=True)
    for column, name in (("miles", "Miles driven"), ("gas", "Gas price")):
        rows = _rows("driving.json")
        for part in range(0, len(rows), 10):
            pairs = [(str(r["year"]), float(r[column])) for r in rows[part : part + 10]]
            yield from _table(f"driving/{column}/{part}", name, pairs, ordered=True)
    iowa = _rows("iowa-electricity.csv")
    for source, rows in _grouped(iowa, lambda r: r["source"]).items():
        pairs = [(r["year"][:4], float(r["net_generation"])) for r in rows]
        yield from _table(f"iowa/{source}", f"{source} in Iowa", pairs, ordered=True)
    for year, rows in _grouped(iowa, lambda r: r["year"][:4]).items():
        pairs = [(_short(r["source"].split()[0]), float(r["net_generation"])) for r in rows]
        yield from _table(f"iowa/{year}", f"Electricity, Iowa {year}", pairs, additive=True)
    states = Counter(r["state"] for r in _rows("airports.csv"))
    for region, codes in _REGIONS.items():
        pairs = [(c, float(states[c])) for c in codes.split() if states[c]]
        yield from _table(f"airports/{region}", f"Airports, {region}", pairs, additive=True)


@lru_cache(maxsize=1)
def _all() -> dict[str, list[list[Table]]]:
    """Split to sources to tables."""
    splits: dict[str, list[list[Table]]] = {"train": [], "test": []}
    for source in (_cars, _barley, _weather, _hours, _money, _jobs, _others):
        every = list(source())
        for split, kept in splits.items():
            kept.append([t for t in every if lexicon.is_test(t.key) == (split == "test")])
    return splits


def sources(split: str) -> list[list[Table]]:
    """The tables of a split, one list a source. Raises ModuleNotFoundError with the install line without the data."""
    return _all()[split]
