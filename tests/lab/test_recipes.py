"""Every recipe that is shipped begins with its command, is free of mistakes, and runs."""

import csv
import io
from collections import Counter
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from trimtab.lab.assets import ASSETS, PREFIX, fetch
from trimtab.lab.check import load_experiment
from trimtab.lab.run import run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

recipes = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)


def test_there_is_a_quickstart():
    assert "quickstart" in {recipe.stem for recipe in RECIPES}


@recipes
def test_a_recipe_begins_with_its_command_and_has_no_mistake(recipe):
    first, *_ = recipe.read_text().splitlines()
    assert first == f"# trimtab run recipes/{recipe.name}"
    assert load_experiment(recipe).name == recipe.stem


@pytest.mark.assets
@recipes
def test_a_recipe_runs_a_step(recipe, tmp_path):
    """The recipe as it is, on the first 100 of its examples, for one epoch of a few steps."""
    values = yaml.safe_load(recipe.read_text())
    asset = ASSETS[values["data"]["source"].removeprefix(PREFIX)]
    rows = list(asset.read(fetch(asset)))[:100]
    label = load_experiment(recipe).task.label
    often = {name for name, number in Counter(row[label] for row in rows).items() if number >= 10}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row for row in rows if row[label] in often)
    values["data"]["source"] = "rows.csv"
    values["train"]["epochs"] = 1
    for method in values["methods"]:
        for options in method.values():
            options.get("train", {}).pop("epochs", None)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    said = io.StringIO()
    assert run(tmp_path / "recipe.yaml", tmp_path / "runs", Console(file=said, width=160)) == 0, said.getvalue()
