"""A wheel holds every package and every shipped file, and works in an environment without the source tree."""

import json
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.loop_recipes import clean_environment, wait_until
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
PACKAGES = ("alignloop", "commands", "configs", "data_schemas", "engine", "pipeline", "stages", "toy_world")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of a copy of the source: setuptools leaves its build folder beside it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_a_wheel_holds_every_package_and_every_shipped_file(wheel):
    shipped = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    expected = {str(path.relative_to(ROOT)) for path in shipped if "__pycache__" not in path.parts}
    kinds = {Path(name).suffix for name in expected}
    assert kinds == {".py", ".yaml", ".jinja", ".json", ".css", ".html", ".j2", ".js"}, (
        "a new kind of file: is it in [tool.setuptools.package-data]?"
    )
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {"configs/demo.yaml", "configs/templates/llama3.jinja", "configs/accelerate/zero3.yaml"} <= held
    assert {"commands/check.py", "data_schemas/stage_keys.json", "configs/starter/my-run.yaml"} <= held


@pytest.fixture
def installed(wheel, tmp_path) -> Path:
    """The command of a new environment with the wheel, which sees the libraries of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, str(wheel)], check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    libraries = {*site.getsitepackages(), sysconfig.get_path("purelib"), *filter(_is_site_packages, sys.path)}
    (packages / "libraries.pth").write_text("".join(f"{path}\n" for path in sorted(libraries)))
    return python.with_name("alignloop")


def _is_site_packages(path: str) -> bool:
    return Path(path).name == "site-packages"


@pytest.mark.long
def test_an_installed_wheel_plans_and_runs_the_demo_from_an_empty_folder(installed, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    environment = {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed, *words],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    planned = call("plan", "demo")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith("demo: 17 steps, 0 reuse, 0 resume, 17 run")
    recipe = planned.stderr.strip().rpartition(": ")[2]
    assert Path(recipe).is_relative_to(tmp_path / "venv") and recipe.endswith("site-packages/configs/demo.yaml")
    assert call("plan", "configs/demo.yaml").stdout == planned.stdout

    # A template beside the recipe, and a recipe that was copied with it.
    (work / "chats.jsonl").write_text('{"messages": []}')
    (work / "pairs.jsonl").write_text('{"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}')
    data = ("--set", "data.instructions=chats.jsonl", "--set", "data.preferences=pairs.jsonl")
    shipped = call("plan", "llama3_8b", *data)
    assert shipped.returncode == 0, shipped.stderr
    assert call("init", "llama3_8b").returncode == 0
    assert call("plan", "llama3_8b.yaml", *data).stdout == shipped.stdout

    words = ("run", "demo", "--set", "pretrain.max_steps=4", "--set", "pretrain.eval_steps=4")
    run = subprocess.Popen(
        [installed, *words], cwd=work, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    # The step after it: between a record and the line of the runner about it the signal would come too early.
    begun = work / "runs" / "demo" / "steps" / "prepare_base"
    try:
        wait_until(begun.exists, seconds=PATIENCE, what="two steps", process=run)
    finally:
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130, err
    steps = json.loads((work / "runs" / "demo" / "summary.json").read_text())["steps"]
    assert [step["state"] for step in steps[:2]] == ["ran", "ran"]
    assert [path.name for path in (work / "runs").iterdir()] == ["demo"]
