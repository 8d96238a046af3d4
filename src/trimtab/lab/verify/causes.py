"""Why a second run may differ from the first: what is not as it was, by kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trimtab.lab.data import PARTS, Prepared
from trimtab.lab.files import fingerprint, read_json
from trimtab.lab.folders import MethodFolder, RunFolder
from trimtab.lab.origin import file_hash
from trimtab.lab.text import count
from trimtab.lab.verify.closeness import flat

KINDS = {
    "code": "code", "packages": "versions", "python": "versions", "platform": "hardware", "processor": "hardware",
    "gpus": "hardware", "kernels": "hardware", "threads": "threads", "threads_between": "threads",
    "processors": "threads", "determinism": "determinism", "variables": "environment variables",
}  # fmt: skip
"""Which kind of cause a part of the environment is."""


@dataclass(frozen=True)
class Cause:
    """One thing that is not as it was."""

    kind: str
    """settings, data, model, result, unknown, or one of `KINDS`."""
    what: str
    """As a person reads it: what, as it was, as it is."""


def of_environment(before: dict[str, Any], now: dict[str, Any]) -> Iterator[Cause]:
    """What of versions, code, hardware, threads and switches has changed; what was not noted is passed over."""
    for top in KINDS.keys() & before.keys():
        one, two = (values[top] if isinstance(values[top], dict) else {"": values[top]} for values in (before, now))
        if top == "code" and one.get("hash") == two.get("hash"):  # another commit of the same sources
            continue
        every = one | two if top == "variables" else one
        for key in sorted(key for key in every if one.get(key) != two.get(key)):
            name = f"{top}.{key}" if key else top
            yield Cause(KINDS[top], f"{name} was {_short(one.get(key))}, is now {_short(two.get(key))}")


def of_settings(manifest: dict[str, Any], method: MethodFolder) -> Iterator[Cause]:
    """Where the manifest, its own hash of the settings, and the run's `settings.json` contradict each other."""
    title = method.path.name
    noted = manifest["settings"].get(title)
    if noted is None:
        return
    values = {key: value for key, value in noted.items() if key != "hash"}
    saved = method.saved_settings() or {}
    one, two = flat(values), flat(saved)
    for key in sorted(key for key in one | two if one.get(key) != two.get(key)):
        found = f"{key} is {one.get(key)!r} in manifest.json, {two.get(key)!r} in settings.json"
        yield Cause("settings", f"{title}: {found}")
    if fingerprint(values) != noted["hash"]:
        yield Cause("settings", f"{title}: its settings in manifest.json were changed: their hash is another")


def of_data(run: RunFolder, noted: str, now: Prepared, kept: Prepared) -> Iterator[Cause]:
    """Whether the examples are those that the manifest notes: as prepared now, and as the run's folder keeps them.

    Args:
        run: the first run.
        noted: the manifest's hash of the data.
        now: the examples as prepared now.
        kept: the examples that the run's folder holds.
    """
    if kept.hash != noted:
        yield Cause("data", f"{run.data.name}/ was changed after the run (hash {_hash(kept.hash)}, was {_hash(noted)})")
    if now.hash != noted:
        parts = [part for part in PARTS if kept.parts[part] != now.parts[part]]
        changed = [f"{part}: {_changes(kept.parts[part], now.parts[part])}" for part in parts]
        found = "; ".join(changed) or "the same as the folder keeps"
        yield Cause("data", f"other examples than then (hash {_hash(now.hash)}, was {_hash(noted)}): {found}")


def of_model(noted: dict[str, str], now: dict[str, str]) -> Iterator[Cause]:
    """Which files of the model that is fine-tuned are not as they were."""
    for name in sorted(name for name in noted | now if noted.get(name) != now.get(name)):
        yield Cause("model", f"{name} was {_hash(noted.get(name))}, is now {_hash(now.get(name))}")


def of_result(method: MethodFolder) -> Iterator[Cause]:
    """Which saved files of the first run are no longer those that it wrote."""
    noted = read_json(method.path / "metrics.json").get("files", {})
    for name, before in noted.items():
        path = method.path / name
        now = file_hash(path) if path.exists() else None
        if now != before:
            changed = f"sha256 {_hash(before)}, now {_hash(now)}"
            yield Cause("result", f"{method.path.name}/{name} was changed after the run ({changed})")


def of_nothing(before: dict[str, Any]) -> Cause:
    """What to say where results differ and nothing else has changed."""
    if before.get("gpus") and not before.get("determinism", {}).get("algorithms"):
        return Cause("determinism", "nothing has changed; on a GPU sums run in no fixed order unless torch is told so")
    return Cause("unknown", "nothing that the manifest notes has changed; something random does not follow the seed")


def _changes(before: list[Any], now: list[Any]) -> str:
    """How many examples of a part are new and how many are gone, or that they are in another order."""
    one, two = ({fingerprint(row) for row in rows} for rows in (before, now))
    if one == two:
        return "in another order"
    return f"{count(len(two - one), 'example')} new, {len(one - two)} gone"


def _hash(value: str | None) -> str:
    return value[:12] if value else "not there"


def _short(value: Any) -> str:
    text = str(value)
    return repr(text[:12]) if len(text) in (40, 64) and text.isalnum() else repr(value)
