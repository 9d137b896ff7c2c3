from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from fq_ldm.diffusion import build_unet
from fq_ldm.options import (
    LDM_CONFIGS,
    VAE_CONFIGS,
    DataConfig,
    LDMConfig,
    TrainingConfig,
    UserError,
    VAEConfig,
    parse_config,
)
from fq_ldm.training.vae import build_model
from reproduction.runs import codec_file

CONFIG_ROOT = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(path for name in ("vae", "codec", "ldm") for path in CONFIG_ROOT.glob(f"*/{name}.yaml"))
LAUNCHES = set(CONFIG_ROOT.glob("accelerate/*.yaml"))  # of accelerate, not of models
ON_TOP = {path for name in ("division", "further", "gpu") for path in CONFIG_ROOT.glob(f"{name}/*.yaml")}  # of one
METHODS = sorted(set(CONFIG_ROOT.glob("*/*.yaml")) - set(CONFIGS) - LAUNCHES - ON_TOP)


@pytest.mark.parametrize("path", sorted(ON_TOP))
def test_what_goes_on_top_of_a_configuration_fits_it(path):
    base, values = CONFIG_ROOT / "celeba64_small", yaml.safe_load(path.read_text())
    if {"perceptual_weight", "learnt_channels"} & values.keys():
        data, vae, painting, config = parse_config(["--config", str(base / "vae.yaml"), str(path)], *VAE_CONFIGS)
        assert {**asdict(vae), **asdict(painting), **asdict(config)}.items() >= values.items()
        assert build_model(data, vae).config.learnt_channels == values.get("learnt_channels", 0)
        return
    _, ldm, config = parse_config(["--config", str(base / "ldm.yaml"), str(path), "--vae", "vae"], *LDM_CONFIGS)
    assert build_unet(ldm, (3, 16, 16)).config.block_out_channels == tuple(ldm.unet_block_out_channels)
    assert {**asdict(ldm), **asdict(config)}.items() >= values.items()


def write(tmp_path, **values):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


def test_flags_win_over_the_file_and_types_are_kept(tmp_path):
    argv = write(tmp_path, dataset="d", resolution=[16, 24], learning_rate="2e-3", random_flip=True, center_crop=None)
    data, config = parse_config([*argv, "--seed", "7", "--learning_rate", "1e-4"], DataConfig, TrainingConfig)
    assert data.dataset == "d" and data.size == (16, 24) and data.random_flip is True and data.center_crop is None
    assert config.seed == 7 and config.learning_rate == 1e-4


@pytest.mark.parametrize(
    "values, flags, message",
    [
        (dict(learning_rte=1), [], "config.yaml: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        (dict(seed="many"), [], "argument --seed: invalid int value: 'many'"),
        (dict(seed={"a": 1}), [], "'seed' must be a value, not a mapping"),
        (dict(mixed_precision="fp8"), [], "invalid choice: 'fp8'"),
        (dict(channels=2), [], "channels: must be 1 or 3, not 2"),
        (dict(resolution=[0]), [], "resolution: must be one or two positive numbers"),
        (dict(train_batch_size=-1), [], "train_batch_size: must be positive, not -1"),
        (dict(max_train_steps=5), ["--max_train_seconds", "9"], "stands instead of max_train_steps: give one of them"),
        ({}, ["--lerning_rate", "1"], "unrecognized arguments: --lerning_rate 1"),
        ({}, [], "dataset: is required"),
    ],
)
def test_mistakes_are_named(tmp_path, values, flags, message):
    argv = write(tmp_path, **values)
    with pytest.raises(UserError) as error:
        parse_config([*argv, *flags], DataConfig, TrainingConfig, required=("dataset",))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_later_files_win_and_a_null_restores_the_default(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("num_tokens: 16\nspectral_crop: 8\nlatent_channels: 2")
    second.write_text("num_tokens: 32\nspectral_crop: null")
    (vae,) = parse_config(["--config", str(first), str(second)], VAEConfig)
    assert (vae.num_tokens, vae.spectral_crop, vae.latent_channels) == (32, None, 2)
    default = parse_config([], VAEConfig)[0].latent_channels
    (vae,) = parse_config(["--config", str(first), "--latent_channels", "null", "--spectral_crop", "null"], VAEConfig)
    assert (vae.num_tokens, vae.spectral_crop, vae.latent_channels) == (16, None, default)
    with pytest.raises(UserError, match="latent_chanels"):
        parse_config(["--latent_chanels", "null"], VAEConfig)


@pytest.mark.parametrize("text, message", [("a: [", "is not valid YAML"), ("- 1", "must hold 'key: value' lines")])
def test_files_that_hold_no_options(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse_config(["--config", str(tmp_path / "bad.yaml")], DataConfig)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        parse_config(["--config", str(tmp_path / "none.yaml")], DataConfig)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_shipped_configs_describe_models(path):
    from fq_ldm.diffusion import build_scheduler, build_unet
    from fq_ldm.training.vae import build_model

    of_vae = path.parent / "vae.yaml" if path.name == "ldm.yaml" else path
    data, vae, painting, _ = parse_config(
        ["--config", str(of_vae)], *VAE_CONFIGS,
        required=("dataset", "output_dir"),
    )  # fmt: skip
    model = build_model(data, vae)
    assert not (path.name == "codec.yaml" and painting.active)  # codecs are compared by equation 1
    if path.name == "ldm.yaml":
        ldm_data, ldm, _ = parse_config(
            ["--config", str(path), "--vae", "x"], DataConfig, LDMConfig, TrainingConfig,
            required=("dataset", "output_dir"),
        )  # fmt: skip
        assert (ldm_data.dataset, ldm_data.size, ldm_data.channels) == (data.dataset, data.size, data.channels)
        unet = build_unet(ldm, model.diffusion_latent_shape)
        assert unet.config.in_channels == model.diffusion_latent_shape[0]
        assert build_scheduler(ldm).config.clip_sample is False


@pytest.mark.parametrize("dataset", ["cifar10", "celeba64"])
@pytest.mark.parametrize("path", METHODS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_methods_fit_the_datasets_at_equal_bits(path, dataset):
    from fq_ldm.training.vae import build_model

    if path.parent.name == "channels" and dataset != "cifar10":
        pytest.skip("the paper sweeps channels on CIFAR-10")
    base = codec_file(dataset)
    data, vae, *_ = parse_config(["--config", str(base), str(path)], *VAE_CONFIGS)
    model = build_model(data, vae)
    assert model.bits_per_image == {"cifar10": 64 * 9, "celeba64": 256 * 10}[dataset]


def test_options_of_another_kind_of_model_are_refused():
    from fq_ldm.training.vae import build_model

    _, vae = parse_config(["--quantizer", "fsq", "--graph_module", "false"], DataConfig, VAEConfig)
    with pytest.raises(UserError, match="graph_module: is not an option of quantizer fsq"):
        build_model(DataConfig(), vae)


def test_there_are_configs_for_every_dataset():
    folders = {path.parent.name for path in CONFIGS}
    assert folders >= {"quickstart", "mnist", "cifar10", "celeba64", "lsun_church"}
    assert all(
        (Path(__file__).parent.parent / "configs" / f / n).is_file() for f in folders for n in ("vae.yaml", "ldm.yaml")
    )


def test_a_configuration_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = parse_config(["--config", "celeba64/vae", "methods/sq_vae"], *VAE_CONFIGS)
    paths = [str(CONFIG_ROOT / "celeba64" / "vae.yaml"), str(CONFIG_ROOT / "methods" / "sq_vae.yaml")]
    assert by_name == parse_config(["--config", *paths], *VAE_CONFIGS)
    assert by_name[1].quantizer == "sq" and by_name[0].center_crop == 140
    (tmp_path / "celeba64").mkdir()
    (tmp_path / "celeba64" / "vae").write_text("dataset: mine")  # a file wins over a name
    assert parse_config(["--config", "celeba64/vae"], DataConfig)[0].dataset == "mine"


def test_a_wrong_name_is_answered_by_the_nearest():
    with pytest.raises(UserError, match="celeba/vae cannot be read: it is no file.*did you mean 'celeba64/vae'"):
        parse_config(["--config", "celeba/vae"], DataConfig)
