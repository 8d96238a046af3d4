"""A run as `trimtab run` leaves it, merged and exported from the command line."""

from typer.testing import CliRunner

from trimtab.lab.commands import app
from trimtab.lab.files import read_json


def test_a_real_run_is_merged_and_exported(finished, tmp_path):
    method = str(finished / "lora")
    done = CliRunner().invoke(app, ["merge", method, str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    assert "same label or next token: 30 of 30" in done.stdout
    assert read_json(tmp_path / "merged" / "merge.json")["proof"]["relative"] < 1e-5
    for to, said in (("hf", "from_pretrained"), ("peft", "read back by trimtab:")):
        done = CliRunner().invoke(app, ["export", method, str(tmp_path / to), "--to", to])
        assert done.exit_code == 0, done.output
        assert said in done.stdout
    done = CliRunner().invoke(app, ["export", method, str(tmp_path / "gguf"), "--to", "gguf"])
    assert done.exit_code == 2
    assert "the GGUF layout of bert is not known here" in done.stderr
    done = CliRunner().invoke(app, ["merge", method, str(tmp_path / "merged")])
    assert done.exit_code == 2
    assert "is there already, and nothing is overwritten" in done.stderr
