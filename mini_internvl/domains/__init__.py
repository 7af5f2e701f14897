"""The domains: one file each, found by its name.

A domain file turns raw annotations into training samples and says how to adapt to them. It has exactly::

    convert(raw: Path, split: str = "train") -> Iterator[Sample]
                     raw folder -> samples, ``apart`` where the questions of one do not build on each other.
                     ValueError with file and row for anything unreadable.
    RECIPE           dict of suggested training settings: epochs, lr, batch_size, general_ratio, max_tiles, ...
    BENCHMARKS       names of the benchmark files that score this domain, all reading the same raw folder.
    EXAMPLE          (raw record, Sample): a worked example; image paths in the Sample are relative to the raw folder.

and, where the raw data can be made here::

    build(folder, *, train, validation, test, ..., seed=0, progress=None) -> Path

Modules whose name begins with an underscore are helpers, not domains. Importing a domain is cheap: extras are imported
inside the functions that need them.
"""
