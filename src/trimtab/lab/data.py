"""From a source to three parts that share no example: read, clean, deduplicate, divide."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.lab import assets
from trimtab.lab.config import FILE_KINDS, Data
from trimtab.lab.errors import DataError
from trimtab.lab.files import fingerprint, read_lines, write_lines
from trimtab.lab.tasks.base import Example, Task
from trimtab.lab.text import allowed, count

PARTS = ("train", "validation", "test")


@dataclass(kw_only=True)
class Cleaning:
    """What was done to the examples before they were divided."""

    read: int = 0
    """Rows in the source."""
    empty: int = 0
    """Rows dropped since something that the task needs was empty."""
    duplicates: int = 0
    """Rows dropped since their input had been seen before, but for case, spaces and Unicode form."""
    conflicts: int = 0
    """Inputs found with several targets; the most frequent target was kept, of equals the first."""
    crossings: int = 0
    """Inputs found in several given parts; kept for test before validation before train."""


@dataclass(kw_only=True)
class Prepared:
    """Examples ready to be learned from."""

    parts: dict[str, list[Example]]
    """The examples of train, validation and test."""
    cleaning: Cleaning = field(default_factory=Cleaning)

    @property
    def hash(self) -> str:
        """Fingerprint of the examples as divided."""
        return fingerprint(self.parts)

    def facts(self, task: Task) -> dict[str, Any]:
        """Counts for the manifest: examples by part and target, and what the cleaning did."""
        counted = self.parts if task.classes else {}
        targets = {part: dict(sorted(Counter(map(task.target, rows)).items())) for part, rows in counted.items()}
        sizes = {part: len(rows) for part, rows in self.parts.items()}
        return {"hash": self.hash, "examples": sizes, "targets": targets, "cleaning": asdict(self.cleaning)}

    def save(self, folder: Path) -> None:
        """Write each part as JSON lines."""
        for part, rows in self.parts.items():
            write_lines(folder / f"{part}.jsonl", rows)


def load_parts(folder: Path) -> dict[str, list[Example]]:
    """The parts that `Prepared.save` wrote."""
    return {part: read_lines(folder / f"{part}.jsonl") for part in PARTS}


def prepare(data: Data, task: Task) -> Prepared:
    """Read, clean, deduplicate and divide the examples of a task.

    Duplicates are removed before anything is drawn, so no input can stand in two parts.

    Raises:
        DataError: the source cannot be read, lacks a column, or cannot be divided as asked.
    """
    cleaning = Cleaning()
    found = {part: _examples(table, task, cleaning) for part, table in _given(data).items()}
    parts = _deduplicate(found, task, cleaning)
    _refuse_empty(parts)
    pool = len(parts["train"])
    for part, share in (("test", data.split.test), ("validation", data.split.validation)):
        if isinstance(share, float):
            parts["train"], parts[part] = _draw(parts["train"], part, round(share * pool), data.split.seed, task)
    _refuse_untrained(parts, task)
    return Prepared(parts={part: parts[part] for part in PARTS}, cleaning=cleaning)


def _given(data: Data) -> dict[str, Any]:
    """The parts that the user gives, as `datasets.Dataset`; those to be drawn are missing."""
    tables = _read(data.source, data.subset, data.revision)
    given = {}
    for part in reversed(PARTS):
        place = getattr(data.split, part)
        if place in tables:
            given[part] = tables[place]
        elif isinstance(place, str):
            if not place.startswith(assets.PREFIX) and not Path(place).exists():
                raise DataError(f"data.split.{part}: {data.source} has no part {place!r}; {allowed(place, tables)}")
            given[part] = next(iter(_read(place, None, None).values()))
    return given


def _read(source: str, subset: str | None, revision: str | None) -> dict[str, Any]:
    """The named parts of a source as `datasets.Dataset`; what has no parts is all `train`."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if source.startswith(assets.PREFIX):
            asset = assets.find(source.removeprefix(assets.PREFIX), "data")
            assert asset.read is not None
            return {"train": datasets.Dataset.from_list(list(asset.read(assets.fetch(asset))))}
        if Path(source).is_file():
            return dict(datasets.load_dataset(FILE_KINDS[Path(source).suffix], data_files=source))
        if (Path(source) / "dataset_dict.json").exists():
            return dict(datasets.load_from_disk(source))
        return dict(datasets.load_dataset(source, subset, revision=revision))
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = error.__cause__ or error
        raise DataError(f"cannot read the data {source}: {reason}") from error


def _examples(table: Any, task: Task, cleaning: Cleaning) -> list[Example]:
    """The rows of a table as the task's examples; rows with something empty are counted and dropped."""
    missing = [column for column in task.columns() if column not in table.column_names]
    if missing:
        wishes = "; ".join(f"no column {column!r}, {allowed(column, table.column_names)}" for column in missing)
        raise DataError(f"the data lacks what task.{task.kind} reads: {wishes}. Name the columns under `task:`.")
    table = table.select_columns(list(dict.fromkeys(task.columns())))
    names = {column: feature.int2str for column, feature in table.features.items() if hasattr(feature, "int2str")}
    rows = ({key: names[key](value) if key in names else value for key, value in row.items()} for row in table)
    examples = [task.example(row) for row in rows]
    kept = [example for example in examples if example is not None]
    cleaning.read += len(examples)
    cleaning.empty += len(examples) - len(kept)
    return kept


def _deduplicate(parts: dict[str, list[Example]], task: Task, cleaning: Cleaning) -> dict[str, list[Example]]:
    """Keep the first example of every input, in the first of the parts that has it, with its most frequent target."""
    homes: dict[str, str] = {}
    firsts: dict[str, Example] = {}
    targets: dict[str, Counter[str]] = {}
    crossing: set[str] = set()
    for part, examples in parts.items():
        for example in examples:
            key = task.key(example)
            firsts.setdefault(key, example)
            targets.setdefault(key, Counter())[task.target(example)] += 1
            if homes.setdefault(key, part) != part:
                crossing.add(key)
    kept: dict[str, list[Example]] = {part: [] for part in parts}
    for key, first in firsts.items():
        kept[homes[key]].append(task.with_target(first, targets[key].most_common(1)[0][0]))
    cleaning.duplicates = sum(map(len, parts.values())) - len(firsts)
    cleaning.conflicts = sum(len(counts) > 1 for counts in targets.values())
    cleaning.crossings = len(crossing)
    return kept


def _draw(rows: list[Example], part: str, size: int, seed: int, task: Task) -> tuple[list[Example], list[Example]]:
    """Divide rows into the rest and a part of `size` rows, with the same share of every target in both."""
    from sklearn.model_selection import train_test_split

    targets = [task.target(row) for row in rows] if task.classes else None
    lonely = sorted(target for target, number in Counter(targets or ()).items() if number < 2)
    if lonely:
        raise DataError(
            f"cannot draw {part} with every class in it: too few examples of {', '.join(lonely)}; "
            "add examples, merge or drop these classes, or give the parts yourself under data.split"
        )
    try:
        rest, drawn = train_test_split(rows, test_size=size, stratify=targets, random_state=seed)
    except ValueError as error:
        raise DataError(f"cannot draw {count(size, 'example')} for {part} from {len(rows):,}: {error}") from error
    return rest, drawn


def _refuse_empty(parts: dict[str, list[Example]]) -> None:
    empty = [part for part, rows in parts.items() if not rows]
    if empty:
        listed = " and ".join(empty)
        raise DataError(f"no example is left for {listed}; look at data.split, and at the columns under `task:`")


def _refuse_untrained(parts: dict[str, list[Example]], task: Task) -> None:
    if not task.classes:
        return
    known = {task.target(row) for row in parts["train"]}
    for part, rows in parts.items():
        strange = sorted({task.target(row) for row in rows} - known)
        if strange:
            raise DataError(f"{part} has targets that train lacks: {', '.join(strange)}; divide the data anew")
