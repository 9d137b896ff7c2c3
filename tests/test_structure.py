"""The rooms of the package, and the arrows between them."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from structure import depth_of, functions, loops, room_imports, source_files

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed(tmp_path):
    """The package as it is installed: some of its folders lie beside `fq_ldm/`."""
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "build_py"]
    subprocess.run([*command, "--build-lib", str(tmp_path / "lib")], cwd=ROOT, check=True, capture_output=True)
    return tmp_path / "lib"


def lint(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", ROOT / "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_arrows_run_downwards(installed):
    result = lint(installed)
    assert result.returncode == 0, result.stdout
    assert "Contracts: 3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    "room, line, broken",
    [
        ("data/images.py", "from ..training import loop", "fq_ldm.data is not allowed to import fq_ldm.training"),
        ("evaluation/report.py", "from ..training import loop", "fq_ldm.evaluation is not allowed to import"),
        ("quantization/tokens.py", "import accelerate", "fq_ldm.quantization is not allowed to import accelerate"),
        ("data/images.py", "from .. import spectrum", "fq_ldm.data is not allowed to import fq_ldm.spectrum"),
    ],
)
def test_an_arrow_that_runs_up_is_found(installed, room, line, broken):
    path = installed / "fq_ldm" / room
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint(installed)
    assert result.returncode == 1 and broken in result.stdout


def test_files_functions_and_nesting_stay_small():
    paths = source_files(ROOT)
    found = [function for path in paths for function in functions(path, ROOT)]
    assert len(paths) > 50 and len(found) > 200
    assert [f"{path}" for path in paths if len(path.read_text().splitlines()) > 350] == []
    assert [function for function in found if function.lines > 70 or function.depth > 4] == []


def test_no_room_imports_one_that_imports_it():
    arrows = room_imports(ROOT)
    assert arrows["models", "quantization"] > 0 and arrows["train_vae", "training"] > 0
    assert loops(arrows) == []
    assert {a for a, b in arrows if b == "training"} - {"benchmarks"} == {"train_vae", "train_ldm"}


def test_loops_are_seen():
    arrows = Counter({("a", "b"): 1, ("b", "c"): 1, ("c", "a"): 2, ("c", "d"): 1})
    assert loops(arrows) == [{"a", "b", "c"}]


def test_levels_are_counted(tmp_path):
    lines = ["def f(x):", "    for a in x:", "        if a:", "            pass", "        elif x:"]
    lines += ["            with a:", "                pass"]
    path = tmp_path / "a.py"
    path.write_text("\n".join(lines))
    (function,) = functions(path, tmp_path)
    assert (function.lines, function.depth) == (7, 3)
    assert depth_of(ast.parse("x = 1")) == 0
