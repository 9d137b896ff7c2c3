"""What people have who install the package: no checkout beside it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest
from PIL import Image
from test_scripts import LDM_OPTIONS, ROOT, VAE_OPTIONS, to_flags


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: leftovers of earlier builds would get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "runs", "checkpoints", "results", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, folder / "source"], check=True)
    shutil.rmtree(folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """`installed(*arguments)` runs the interpreter of an environment with the wheel and its requirements alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(command, check=True)
    # The requirements are gigabytes: they are borrowed, without the package that is installed there for these tests.
    (site_packages,) = (folder / "lib").glob("*/site-packages")
    (site_packages / "requirements.pth").write_text(sysconfig.get_paths()["purelib"])
    place = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        result = subprocess.run([python, *arguments], cwd=place, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run.place, run.site_packages = place, site_packages
    return run


def test_the_wheel_holds_the_product_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"fq_ldm"}
    configurations = {f"fq_ldm/configs/{p.relative_to(ROOT / 'configs')}" for p in (ROOT / "configs").glob("*/*.yaml")}
    assert len(configurations) > 40 and configurations <= set(names)
    assert "fq_ldm/cards/model_card.md" in names and "fq_ldm/pipelines/pipeline_fq_ldm.py" in names
    assert not [name for name in names if "test" in name or "reproduction" in name or "benchmark" in name]


def test_train_sample_and_evaluate_without_the_checkout(installed, image_folder):
    for module in ("fq_ldm", "fq_ldm.pipelines", "fq_ldm.configs"):
        found = installed("-c", f"import {module}; print({module}.__file__)").strip()
        assert found.startswith(str(installed.site_packages))

    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_cpu_threads_per_process", "1", "-m"]
    common = ["--dataset", str(image_folder), "--max_train_steps", "2"]
    options = to_flags({**VAE_OPTIONS, "output_dir": "vae"})
    installed(*launch, "fq_ldm.train_vae", "--config", "quickstart/vae", *common, *options)
    options = to_flags({**LDM_OPTIONS, "output_dir": "pipeline", "vae": "vae"})
    installed(*launch, "fq_ldm.train_ldm", "--config", "quickstart/ldm", *common, *options)
    assert "accelerate launch -m fq_ldm.train_ldm" in (installed.place / "pipeline" / "README.md").read_text()

    sample = "from fq_ldm import FQLDMPipeline; FQLDMPipeline.from_pretrained('pipeline')(1, 2).images[0].save('a.png')"
    installed("-c", sample)
    assert Image.open(installed.place / "a.png").size == (16, 16)

    options = to_flags(dict(dataset=image_folder, channels=1, resolution=16, validation_size=8, output_dir="measured"))
    said = installed("-m", "fq_ldm.evaluate", "--model", "vae", *options)
    assert "PSNR" in said and (installed.place / "measured" / "evaluation.json").is_file()
