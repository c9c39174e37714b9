"""What the README says is so: its example runs, its commands exist, its tree is the house."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.cli.main import VERBS, main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    example = next(block for block in blocks("python") if "import jaxlm" in block or "from jaxlm" in block)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d+ \(2, 64, 2, 32\)\n", done.stdout), done.stdout
    assert (tmp_path / "runs" / "api" / "manifest.json").is_file()


def test_the_tree_names_every_room_and_no_other():
    tree = next(block for block in blocks("text") if block.startswith("pallas_kernels/"))
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    package = {p.name for p in (ROOT / "jaxlm").iterdir() if not p.name.startswith("_")}
    assert named == package
    top = {line.split()[0].rstrip("/") for line in tree.splitlines() if not line.startswith("  ")}
    assert all((ROOT / name).is_dir() for name in top)


def test_scripts_and_verbs_of_the_commands_exist(capsys):
    commands = [line.partition("#")[0].split() for block in blocks("sh") for line in block.splitlines() if line]
    scripts = {words[0] for words in commands if words[0].startswith("scripts/")}
    assert scripts == {"scripts/quickstart", "scripts/test", "scripts/launch_local", "scripts/launch_tpu_pod"}
    assert all((ROOT / script).stat().st_mode & 0o111 for script in scripts)
    verbs = {words[1] for words in commands if words[0] == "jaxlm"}
    assert verbs >= {"generate", "eval", "check", "train"}
    assert verbs <= set(VERBS)


@pytest.mark.parametrize("config", re.findall(r"configs/\w+\.py", README))
def test_the_configs_that_it_names_exist(config, capsys):
    assert (ROOT / config).is_file()
    assert main(["train", config, "--help"]) == 0
    assert "--model.n-layers" in capsys.readouterr().out


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
