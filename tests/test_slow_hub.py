"""Both scripts push, and every line on the cards runs in fresh processes, with and without the package."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from fake_hub import FakeHub
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, to_flags

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
WITHOUT_THE_PACKAGE = 'import sys\nsys.modules["fq_ldm"] = None\n'
SEEDED = "num_images=4, generator=torch.Generator().manual_seed(0)"
SHOW = "import hashlib\nprint(hashlib.sha256(b''.join(image.tobytes() for image in images)).hexdigest())\n"


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


def run(hub, folder, *command, token="hf_ann", **environment):
    """A process of its own with an empty cache, at the fake Hub."""
    inherited = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1"}
    if token is not None:
        own["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True,
        env={**inherited, **own, **environment},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pushed(hub, image_folder, tmp_path_factory):
    """The folder in which both scripts have trained and pushed, and what they printed."""
    folder = tmp_path_factory.mktemp("push")
    push = dict(push_to_hub=True, max_train_steps=2, dataset=image_folder, card_license="mit", report_to="none")
    vae = dict(**VAE_OPTIONS, **push, output_dir="vae", hub_model_id="ann/digits-vae", hub_private=True)
    (folder / "vae").mkdir()
    (folder / "vae" / "bad_images.txt").write_text("secret")
    first = run(hub, folder, ROOT / "train_vae.py", *to_flags(vae))
    assert first.returncode == 0, first.stderr
    ldm = dict(**LDM_OPTIONS, **push, vae="ann/digits-vae", output_dir="pipeline", hub_model_id="ann/digits")
    second = run(hub, folder, ROOT / "train_ldm.py", *to_flags(ldm), "--num_train_timesteps", 20)
    assert second.returncode == 0, second.stderr
    return folder, first.stdout + second.stdout


def test_what_is_uploaded(hub, pushed):
    folder, printed = pushed
    files = hub.files("ann/digits-vae")
    assert set(files) == {
        "README.md", "training_config.yaml", "metrics.json", "reconstructions.png", "config.json", "fq_model.py",
        "diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert f"uploaded to {hub.url}/ann/digits-vae" in printed and f"uploaded to {hub.url}/ann/digits" in printed
    assert hub.repositories["ann/digits-vae"]["private"] and not hub.repositories["ann/digits"]["private"]
    files |= {f"pipeline/{name}": data for name, data in hub.files("ann/digits").items()}
    assert {"pipeline/pipeline_fq_ldm.py", "pipeline/vqvae/fq_model.py", "pipeline/samples.png"} <= set(files)
    for name, data in files.items():
        assert str(folder).encode() not in data and b"/tmp/" not in data, name
    front = yaml.safe_load(files["pipeline/README.md"].decode().split("---")[1])
    assert front["license"] == "mit" and front["base_model"] == "ann/digits-vae" and front["inference"] is False
    assert front["model-index"][0]["results"][0]["metrics"][0]["name"] == "diffusion loss on held-out images"
    assert yaml.safe_load(files["training_config.yaml"])["dataset"].startswith("path/to/")


def snippets(hub, name):
    return re.findall(r"```python\n(.*?)```", hub.files(name)["README.md"].decode(), re.DOTALL)


def test_the_lines_of_the_pipelines_card(hub, pushed, tmp_path):
    folder, _ = pushed
    plain, packaged = ("import torch\n" + code.replace("num_images=16", SEEDED) for code in snippets(hub, "ann/digits"))
    before = packaged.replace('"ann/digits"', repr(str(folder / "pipeline")))
    results = [
        run(hub, tmp_path, "-c", code + "\n" + SHOW, token=None, HF_HOME=str(tmp_path / str(number)))
        for number, code in enumerate((WITHOUT_THE_PACKAGE + plain, packaged, before))
    ]
    for result in results:
        assert result.returncode == 0, result.stderr
    assert len({result.stdout.split()[-1] for result in results}) == 1
    again = run(hub, tmp_path, "-c", packaged + "\n" + SHOW, HF_HOME=str(tmp_path / "1"), HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and again.stdout == results[1].stdout, again.stderr


def test_the_lines_of_the_models_card(hub, pushed, tmp_path):
    lines = "import torch\nimages = torch.linspace(-1, 1, 512).view(2, 1, 16, 16)\n"
    show = "\nimport hashlib\nprint(hashlib.sha256(reconstructions.detach().numpy().tobytes()).hexdigest())\n"
    plain, packaged = (lines + code + show for code in snippets(hub, "ann/digits-vae"))
    plain = plain.replace("trust_remote_code=True)", "trust_remote_code=True).eval()")
    results = [run(hub, tmp_path, "-c", code) for code in (WITHOUT_THE_PACKAGE + plain, packaged)]
    for result in results:
        assert result.returncode == 0, result.stderr
    assert results[0].stdout.split()[-1] == results[1].stdout.split()[-1]
    assert run(hub, tmp_path, "-c", packaged, token=None, HF_HOME=str(tmp_path / "other")).returncode != 0  # private


def test_only_what_the_index_names_is_downloaded(hub, pushed, tmp_path):
    files = hub.files("ann/digits")
    index = b'{"_class_name": "OtherPipeline", "unet": ["diffusers", "UNet2DModel"]}'
    hub.put("ann/foreign", {**files, "model_index.json": index, "unet/pickle.bin": b"x"})
    hub.put("ann/more", {**files, "unet/pickle.bin": b"x", "video.mp4": b"x", "evil.py": b"raise SystemExit"})
    code = """
        from fq_ldm import FQLDMPipeline
        try:
            FQLDMPipeline.from_pretrained("ann/foreign")
        except ValueError as error:
            print("refused:", error)
        FQLDMPipeline.from_pretrained("ann/more", force_download=True)
        for name in ("no/where", "not a name", "one/two/three"):
            try:
                FQLDMPipeline.from_pretrained(name)
            except OSError as error:
                print("missing:", type(error).__name__, " ".join(str(error).split()))
        """
    hub.asked.clear()
    result = run(hub, tmp_path, "-c", textwrap.dedent(code))
    assert result.returncode == 0, result.stderr
    assert "refused:" in result.stdout and "not the index of an FQLDMPipeline" in result.stdout
    assert (
        result.stdout.count("missing:") == 3 and result.stdout.count("there is no such folder, and no repository") == 2
    )
    fetched = {path for method, path in hub.asked if "/resolve/" in path and method == "GET"}
    foreign = {path.rpartition("/")[2] for path in fetched if "ann/foreign" in path}
    assert foreign == {"model_index.json"}
    assert not any(path.endswith((".bin", ".mp4", ".py")) for path in fetched)


@pytest.mark.parametrize(
    ("options", "token", "message"),
    [
        (dict(), "hf_ann", "push_to_hub: say where to, so that no other model is overwritten: give --hub_model_id"),
        (dict(hub_model_id="ann/mine"), None, "push_to_hub: nobody is logged in: run hf auth login"),
        (dict(hub_model_id="bob/mine"), "hf_ann", "hub_model_id: bob/mine cannot be written to"),
        (dict(hub_model_id="ann/open", hub_private=True), "hf_ann", "hub_private: ann/open is there, and public"),
        (dict(hub_model_id="mine"), "hf_ann", "hub_model_id: must be user/name, not mine"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_training(hub, image_folder, tmp_path, options, token, message):
    hub.put("ann/open", {})
    flags = to_flags(dict(**VAE_OPTIONS, dataset=image_folder, output_dir="vae", push_to_hub=True, **options))
    result = run(hub, tmp_path, ROOT / "train_vae.py", *flags, token=token)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "vae").exists()


def test_a_loaded_pipeline_is_pushed_with_its_card(hub, pushed, tmp_path):
    code = """
        from fq_ldm import FQLDMPipeline
        pipeline = FQLDMPipeline.from_pretrained("ann/digits")
        pipeline.unet.half().float()
        pipeline.push_to_hub("ann/copy")
        FQLDMPipeline(**pipeline.components).push_to_hub("ann/bare")
        """
    result = run(hub, tmp_path, "-c", textwrap.dedent(code))
    assert result.returncode == 0, result.stderr
    copy, bare = hub.files("ann/copy"), hub.files("ann/bare")
    assert b'from_pretrained("ann/copy"' in copy["README.md"] and b"license: mit" in copy["README.md"]
    assert b'from_pretrained("ann/bare"' in bare["README.md"] and "vqvae/fq_model.py" in bare
    size = len(hub.files("ann/digits")["unet/diffusion_pytorch_model.safetensors"])
    assert len(copy["unet/diffusion_pytorch_model.safetensors"]) < 0.75 * size


def test_evaluation_takes_names_of_the_hub(hub, pushed, image_folder, tmp_path):
    for name in ("ann/digits", "ann/digits-vae"):
        flags = ["--model", name, "--dataset", image_folder, "--channels", 1, "--resolution", 16]
        metrics = ["spectrum"] if name == "ann/digits" else ["reconstruction"]
        flags += ["--validation_size", 8, "--num_samples", 4, "--num_inference_steps", 2, "--output_dir", "out"]
        result = run(hub, tmp_path, ROOT / "evaluate.py", *flags, "--metrics", *metrics)
        assert result.returncode == 0, result.stderr


def test_downloads_that_break_off_go_on_where_they_were(hub, pushed, tmp_path):
    folder, _ = pushed
    code = """
        import torch
        from fq_ldm import FQLDMPipeline
        pipeline = FQLDMPipeline.from_pretrained({name!r})
        images = pipeline(num_images=4, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
        """
    # What has come of less than a chunk, 10 MB by default, is thrown away.
    chunks = "from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = 1000\n"
    online = chunks + textwrap.dedent(code.format(name="ann/digits")) + SHOW
    weights = "unet/diffusion_pytorch_model.safetensors"
    try:
        hub.breaks = {weights: 1000}
        result = run(hub, tmp_path, "-c", online)
        assert "OSError: ann/digits: the download broke off" in result.stderr.splitlines()[-1]
        whole = len(hub.files("ann/digits")[weights])
        hub.breaks, hub.resumed = {weights: 2, "vqvae/config.json": 1}, {}
        result = run(hub, tmp_path, "-c", online)  # what has come so far is no model
        assert result.returncode == 0, result.stderr
        (resumed,) = [start for path, start in hub.resumed.items() if path.endswith(weights)]
        assert 0 < resumed < whole  # and is not fetched again
    finally:
        hub.breaks = {}
    local = run(hub, tmp_path, "-c", textwrap.dedent(code.format(name=str(folder / "pipeline"))) + SHOW)
    assert result.stdout == local.stdout and len(local.stdout) == 65


def test_uploads_that_fail_are_made_up_for_by_the_same_command(hub, image_folder, tmp_path):
    options = dict(**VAE_OPTIONS, dataset=image_folder, output_dir="vae", max_train_steps=2, report_to="none")
    # Another seed than that of `pushed`, or the Hub would have these weights already.
    flags = to_flags(dict(**options, seed=7, push_to_hub=True, hub_model_id="ann/late"))
    try:
        hub.breaks = {"/_lfs": 1000}
        result = run(hub, tmp_path, ROOT / "train_vae.py", *flags)
        assert result.returncode == 1 and "Traceback" not in result.stderr
        assert "push_to_hub: the upload failed" in result.stderr and "config.json" not in hub.files("ann/late")
    finally:
        hub.breaks = {}
    result = run(hub, tmp_path, ROOT / "train_vae.py", *flags)
    assert result.returncode == 0, result.stderr
    weights = "diffusion_pytorch_model.safetensors"
    assert hub.files("ann/late")[weights] == (tmp_path / "vae" / weights).read_bytes()
