"""Saved folders that bring their code: what diffusers loads without this package, and what the package makes of it."""

import ast
import json
import shutil
import sys

import pytest
import torch
from conftest import TINY, untrained_pipeline
from diffusers import AutoModel, DiffusionPipeline, VQModel

from fq_ldm import BaselineModel, FQLDMPipeline, FQModel, HQAModel, export, load_vae
from fq_ldm.bundle import bundle
from fq_ldm.models import CLASSES
from fq_ldm.options import DataError, UserError


@pytest.mark.parametrize("cls", [*CLASSES.values(), FQLDMPipeline], ids=lambda cls: cls.__name__)
def test_one_file_holds_a_class_and_all_it_needs(cls):
    name, text = cls.own_code()
    tree = ast.parse(text)
    assert {"FQModel": "fq_model", "FQLDMPipeline": "pipeline_fq_ldm"}.get(cls.__name__, "baselines") == name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module.split(".")[0] != "fq_ldm", ast.unparse(node)
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert cls.__name__ in defined and len(set(defined)) == len(defined)
    assert len(text) < 150_000 and not [line for line in text.splitlines() if "__module__ =" in line]


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Where diffusers copies code to before it imports it."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


def sample(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(2, 3, torch.Generator().manual_seed(0), output_type="pt").images


def test_diffusers_alone_loads_a_pipeline_and_saves_it_again(model, modules, tmp_path):
    pipeline = FQLDMPipeline.from_pipe(untrained_pipeline(model, 100), pag_scale=2.0)
    pipeline.save_pretrained(tmp_path / "one")
    index = json.loads((tmp_path / "one" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_fq_ldm", "FQLDMPipeline"] and index["vqvae"] == ["fq_model", "FQModel"]
    plain = DiffusionPipeline.from_pretrained(tmp_path / "one", trust_remote_code=True)
    assert type(plain) is not FQLDMPipeline and type(plain.vqvae) is not FQModel
    assert torch.equal(sample(plain), sample(pipeline))
    plain.save_pretrained(tmp_path / "two")
    for name in ("model_index.json", "pipeline_fq_ldm.py", "vqvae/fq_model.py", "vqvae/config.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert torch.equal(sample(FQLDMPipeline.from_pretrained(tmp_path / "two")), sample(pipeline))
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "one")


def test_diffusers_alone_loads_an_fq_vae(model, images, modules, tmp_path):
    model.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(str(tmp_path), trust_remote_code=True).eval()
    assert type(plain) is not FQModel
    with torch.no_grad():
        assert torch.equal(plain.detokenize(plain.tokenize(images)), model.detokenize(model.tokenize(images)))
    plain.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "fq_model.py").read_text() == (tmp_path / "fq_model.py").read_text()
    assert torch.equal(load_vae(tmp_path / "again").tokenize(images), model.tokenize(images))


@pytest.mark.parametrize("cls", [BaselineModel, HQAModel])
def test_diffusers_alone_loads_baselines(cls, modules, tmp_path):
    torch.manual_seed(0)
    model = cls(sample_size=16, block_out_channels=(8,), norm_num_groups=4, num_tokens=16, num_vq_embeddings=32).eval()
    model.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(str(tmp_path), trust_remote_code=True).eval()
    tokens = torch.randint(32, (2, 16))
    with torch.no_grad():
        assert torch.equal(plain.detokenize(tokens), model.detokenize(tokens))


def test_the_package_runs_no_code_of_a_folder(model, tmp_path):
    untrained_pipeline(model, 100).save_pretrained(tmp_path)
    for file in (tmp_path / "pipeline_fq_ldm.py", tmp_path / "vqvae" / "fq_model.py"):
        file.write_text("raise SystemExit('run')")
    pipeline = FQLDMPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(pipeline) is FQLDMPipeline and type(pipeline.vqvae) is FQModel
    assert type(load_vae(tmp_path)) is FQModel


def test_folders_from_before_load_as_they_did(model, tmp_path):
    pipeline = untrained_pipeline(model, 100)
    pipeline.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    old = json.loads(index.read_text()) | {"_class_name": "FQLDMPipeline", "vqvae": ["fq_ldm", "FQModel"]}
    index.write_text(json.dumps(old))
    for file in tmp_path.rglob("*.py"):
        file.unlink()
    assert torch.equal(sample(FQLDMPipeline.from_pretrained(tmp_path)), sample(pipeline))


def test_the_plain_vqmodel_refuses_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load them with fq_ldm.load_vae, or with AutoModel"):
        VQModel.from_pretrained(tmp_path)


def test_loading_warns_of_nothing(model, tmp_path, capfd):
    untrained_pipeline(model, 100).save_pretrained(tmp_path)
    FQLDMPipeline.from_pretrained(tmp_path)
    load_vae(tmp_path / "vqvae")
    assert "not expected" not in capfd.readouterr().err


class Mine(FQModel):
    """Somebody else's class."""


def test_somebody_elses_class_brings_no_code(tmp_path):
    Mine(**TINY).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and "auto_map" not in (tmp_path / "config.json").read_text()


def test_modules_that_cannot_be_joined_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "joined"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("fq_ldm.bundle.PACKAGE", "joined")
    files = {
        "__init__": "from .a import Thing\n",
        "a": '"""A."""\nimport math\n\n\nclass Thing:\n    size = math.pi\n',
        "good": '"""Good."""\n# why\nfrom . import Thing\n\n\ndef f():\n    return Thing\n',
        "same": '"""Same."""\nfrom .a import Thing\n\n\nclass Other:\n    pass\n\n\nThing2 = Thing\nmath = 3\n',
        "inner": '"""Inner."""\n\n\ndef f():\n    from .a import Thing\n    return Thing\n',
        "renamed": '"""Renamed."""\nfrom .a import Thing as T\n',
        "whole": '"""Whole."""\nfrom . import a\n',
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    names = {}
    exec(bundle("joined.good", "1"), names)
    assert names["f"]().size == pytest.approx(3.14159, abs=1e-5)
    for name, message in {
        "same": "math is defined in joined.same, and imported elsewhere",
        "inner": "inside of a function does not join",
        "renamed": "other names than the imported ones",
        "whole": "joined defines no a",
    }.items():
        with pytest.raises(ValueError, match=message):
            bundle(f"joined.{name}", "1")


@pytest.mark.slow
def test_export_is_checked_in_a_process_without_the_package(model, tmp_path, capsys):
    untrained_pipeline(model, 100).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text('---\n---\nFQLDMPipeline.from_pretrained("run", x=1)\n')
    export.main([str(tmp_path / "run"), str(tmp_path / "out"), "--name", "ann/faces", "--check"])
    assert "loaded by diffusers alone: the same image" in capsys.readouterr().out
    assert 'from_pretrained("ann/faces", x=1)' in (tmp_path / "out" / "README.md").read_text()
    half = FQLDMPipeline.from_pretrained(tmp_path / "out", variant="fp16", torch_dtype=torch.float16)
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "out").rglob("*.json"))
    assert half.unet.dtype == torch.float16 and (tmp_path / "out" / "samples.png").is_file()
    with pytest.raises(UserError, match="is not empty"):
        export.main([str(tmp_path / "run"), str(tmp_path / "out")])
    other = FQLDMPipeline.from_pretrained(tmp_path / "out")
    torch.nn.init.constant_(other.vqvae.decoder.conv_out.bias, 0.1)
    with pytest.raises(DataError, match="makes another image"):
        export.check_folder(tmp_path / "out", other)
    (tmp_path / "out" / "vqvae" / "fq_model.py").write_text("raise ImportError('broken')")
    with pytest.raises(DataError, match="does not load .*broken"):
        export.check_folder(tmp_path / "out", half)
    with pytest.raises(DataError, match="source: .*none"):
        export.main([str(tmp_path / "none"), str(tmp_path / "other")])


def test_an_fq_vae_is_exported_too(model, images, tmp_path):
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text('---\n---\nMine: FQModel.from_pretrained("run")\n')
    export.main([str(tmp_path / "run"), str(tmp_path / "out")])
    with pytest.raises(UserError, match="is not empty"):
        export.main([str(tmp_path / "run"), str(tmp_path / "out")])
    assert torch.equal(load_vae(tmp_path / "out").tokenize(images), model.tokenize(images))
    assert (tmp_path / "out" / "fq_model.py").is_file()
    assert 'Mine: FQModel.from_pretrained("out")' in (tmp_path / "out" / "README.md").read_text()


def test_an_exported_unet_is_not_rounded(model, tmp_path):
    """Nor are the samples in its folder: float16 is another file beside it."""
    pipeline = untrained_pipeline(model, 100)
    pipeline.save_pretrained(tmp_path / "run")
    exported = export.export(str(tmp_path / "run"), tmp_path / "out", "out")
    loaded = FQLDMPipeline.from_pretrained(tmp_path / "out")
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(exported.unet.state_dict()[name], value)
        assert torch.equal(loaded.unet.state_dict()[name], value)


def test_an_fq_vae_is_found_in_a_pipeline(model, images, tmp_path):
    untrained_pipeline(model, 100).save_pretrained(tmp_path / "pipeline")
    shutil.copytree(tmp_path / "pipeline" / "vqvae", tmp_path / "other" / "deep")
    for found in (load_vae(tmp_path / "pipeline"), load_vae(tmp_path / "other", subfolder="deep")):
        assert torch.equal(found.tokenize(images), model.tokenize(images)) and not found.training
