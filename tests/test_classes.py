"""Class-conditional training and sampling."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from conftest import smooth_images
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DModel
from PIL import Image
from test_pipeline import seeds
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, call  # noqa: F401  (a fixture)

import evaluate
import train_ldm
import train_vae
from fq_ldm import FQLDMPipeline
from fq_ldm.data import load_images
from fq_ldm.diffusion import diffusion_loss, hide_labels
from fq_ldm.evaluation.classes import judge_classes, make_judge, spread_classes
from fq_ldm.metrics.classifier import train_classifier
from fq_ldm.options import DataConfig, DataError, EvaluationConfig, UserError
from fq_ldm.pipelines.guidance import Guidance

NAMES = ["ant", "bee", "cow"]


@pytest.fixture
def conditional(model):
    """An untrained pipeline of three classes, whose embeddings differ."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=(8, 12), in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4, num_class_embeds=4,
    ).eval()  # fmt: skip
    scheduler = DDPMScheduler(clip_sample=False)
    pipeline = FQLDMPipeline(model, unet, scheduler, class_names=NAMES, class_shares=[0.7, 0.3, 0.0])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(pipeline, count=3, **options):
    return pipeline(count, 3, seeds(*range(count)), output_type="pt", **options).images


def test_classes_by_number_name_list_and_tensor(conditional):
    bees = sample(conditional, class_labels=1)
    for labels in ("bee", [1, 1, 1], ["bee", 1, np.int64(1)], torch.tensor([1, 1, 1])):
        assert torch.equal(sample(conditional, class_labels=labels), bees)
    mixed = sample(conditional, class_labels=["ant", "bee", "cow"])
    torch.testing.assert_close(mixed[1], bees[1], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(mixed[0], bees[0], atol=1e-3)


def test_without_labels_classes_come_by_their_shares(conditional):
    seen = []
    forward = conditional.unet.forward

    def note(sample, timestep, class_labels):
        seen.append(class_labels)
        return forward(sample, timestep, class_labels)

    conditional.unet.forward = note
    conditional(400, 1, torch.Generator().manual_seed(0), output_type="pt")
    drawn = torch.bincount(seen[0], minlength=3) / 400
    assert drawn[0].item() == pytest.approx(0.7, abs=0.07) and drawn[2] == 0
    seen.clear()
    conditional(3, 1, seeds(5, 6, 7), output_type="pt")
    conditional(1, 1, seeds(6), output_type="pt")
    assert seen[0][1] == seen[1][0]  # an image does not depend on its batch


SCHEDULERS = [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_guidance_goes_from_no_class_through_the_class(conditional, scheduler):
    """Scale 0 is the unconditional model, 1 the conditional one, and 2 as far beyond it, at the first step."""
    conditional.scheduler = scheduler.from_config(conditional.scheduler.config)
    latents, predictions = torch.randn(2, 3, 8, 12), {}
    labels, t = torch.tensor([0, 2]), torch.tensor(500)
    for scale in (0.0, 1.0, 2.0):
        predictions[scale] = Guidance(conditional.unet, conditional.scheduler.alphas_cumprod, scale)(latents, t, labels)
    with torch.no_grad():
        none = conditional.unet(latents, t, class_labels=torch.tensor([3, 3])).sample
    torch.testing.assert_close(predictions[0.0], none, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        predictions[2.0] - predictions[1.0], predictions[1.0] - predictions[0.0], rtol=1e-3, atol=1e-5
    )
    assert not torch.equal(sample(conditional, class_labels=0, guidance_scale=3.0), sample(conditional, class_labels=0))


def test_guidance_in_no_interval_is_none(conditional):
    plain = sample(conditional, class_labels=1)
    assert torch.equal(sample(conditional, class_labels=1, guidance_scale=5.0, guidance_interval=(0.999, 1.0)), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(class_labels=3), "class_labels: 3 is no class; there are 0 .. 2, by name ant, bee, cow"),
        (dict(class_labels="dog"), "class_labels: 'dog' is no class"),
        (dict(class_labels=1.5), "class_labels: 1.5 is no class"),
        (dict(class_labels=[0, 1]), "2 class_labels for 3 images"),
        (dict(guidance_interval=(0.6, 0.2)), "guidance_interval must be two shares"),
    ],
)
def test_wrong_classes(conditional, options, message):
    with pytest.raises(ValueError) as error:
        sample(conditional, **options)
    assert message in str(error.value)


def test_an_unconditional_pipeline_knows_no_classes(pipeline):
    for options in (dict(class_labels=0), dict(guidance_scale=2.0)):
        with pytest.raises(ValueError, match="this pipeline knows no classes"):
            pipeline(1, 1, **options)


def test_classes_are_saved_and_loaded(conditional, tmp_path):
    conditional.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["class_names"] == NAMES
    loaded = FQLDMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(sample(loaded, class_labels="cow"), sample(conditional, class_labels=2))
    with pytest.raises(ValueError, match="4 class embeddings, one of them for no class, but there are 2 class_names"):
        FQLDMPipeline(**conditional.components, class_names=["a", "b"], class_shares=[0.5, 0.5])


def test_labels_are_hidden_as_often_as_asked():
    labels = torch.arange(10).repeat(1000)
    hidden = hide_labels(labels, 0.3, 10, torch.Generator().manual_seed(0))
    assert (hidden == 10).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(hidden[hidden != 10], labels[hidden != 10])


class Reader(torch.nn.Module):
    """Predicts the class label of each image, whatever the image."""

    def forward(self, latents, timesteps, class_labels):
        return type("Output", (), {"sample": class_labels.view(-1, 1, 1, 1).expand_as(latents).float()})


def test_the_loss_hands_each_image_its_class():
    scheduler = DDPMScheduler(clip_sample=False)
    latents, labels = torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 2, 3])
    loss = diffusion_loss(Reader(), scheduler, latents, torch.Generator().manual_seed(0), class_labels=labels)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx((noise - labels.view(-1, 1, 1, 1)).square().mean().item(), rel=1e-5)


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Subfolders dark, grey and light, of 12, 10 and 8 images with that mean; the files are numbered at random."""
    folder = tmp_path_factory.mktemp("shades")
    rng, numbers = np.random.default_rng(0), iter(np.random.default_rng(1).permutation(30))
    for name, level, count in (("dark", -0.7, 12), ("grey", 0.0, 10), ("light", 0.7, 8)):
        (folder / name).mkdir()
        for _ in range(count):
            array = (smooth_images(1, 1, 16, 16, seed=int(rng.integers(1000)))[0, 0] * 0.25 + level + 1) * 127.5
            Image.fromarray(array.numpy().astype(np.uint8)).save(folder / name / f"{next(numbers):02d}.png")
    return folder


def shade(images):
    """The class of images (n, ...), by their mean."""
    return ((images.flatten(1).mean(1) * 2).round() + 1).long()


def test_labels_of_folders_go_with_their_images(shades):
    options = dict(dataset=str(shades), channels=1, resolution=[16], validation_size=9)
    train, held_out = load_images(DataConfig(**options, label_column="label"))
    assert train.class_names == ("dark", "grey", "light")
    for part in (train, held_out):
        assert torch.equal(part.labels, shade(torch.stack(list(part))))
    assert load_images(DataConfig(**options))[0].labels is None


def test_labels_survive_the_search_for_bad_images(shades, tmp_path):
    import shutil

    folder = shutil.copytree(shades, tmp_path / "shades")
    for name in ("dark", "grey"):
        next(iter(sorted((folder / name).iterdir()))).write_bytes(b"no image")
    config = DataConfig(
        dataset=str(folder), channels=1, resolution=[16], validation_size=9, label_column="label", skip_bad_images=True
    )
    train, held_out = load_images(config)
    assert len(train) + len(held_out) == 28
    for part in (train, held_out):
        assert torch.equal(part.labels, shade(torch.stack(list(part))))


def table(labels, feature=None):
    images = [Image.new("L", (16, 16)) for _ in labels]
    made = datasets.Dataset.from_dict({"image": images, "kind": labels}).cast_column("image", datasets.Image())
    return made if feature is None else made.cast_column("kind", feature)


@pytest.mark.parametrize(
    ("labels", "feature", "names", "numbers"),
    [
        (["b", "a", "b", "c"], None, ("a", "b", "c"), [1, 0, 1, 2]),
        ([30, 7, 7, 9], None, ("7", "9", "30"), [2, 0, 0, 1]),
        ([1, 0, 1, 1], datasets.ClassLabel(names=["no", "yes", "perhaps"]), ("no", "yes", "perhaps"), [1, 0, 1, 1]),
    ],
)
def test_labels_of_columns(tmp_path, labels, feature, names, numbers):
    table(labels, feature).to_parquet(tmp_path / "train.parquet")
    config = DataConfig(
        dataset=str(tmp_path), channels=1, resolution=[16], validation_split="train", label_column="kind"
    )
    images, _ = load_images(config)
    assert images.class_names == names and images.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("labels", "column", "error", "message"),
    [
        (["a", "b", None, "a"], "kind", DataError, "image 2 of .* has no label"),
        ([0.5, 1.0, 2.0, 0.5], "kind", UserError, "label_column: 'kind' of .* holds float"),
        (["a", "b", "b", "a"], "sort", UserError, "label_column: .* has no column 'sort', only image, kind"),
    ],
)
def test_wrong_labels(tmp_path, labels, column, error, message):
    table(labels).to_parquet(tmp_path / "train.parquet")
    config = DataConfig(
        dataset=str(tmp_path), channels=1, resolution=[16], validation_split="train", label_column=column
    )
    with pytest.raises(error, match=message):
        load_images(config)[0].labels  # noqa: B018


@pytest.mark.parametrize("cached", [True, False])
def test_training_pairs_images_with_their_classes(call, shades, tmp_path, monkeypatch, cached):  # noqa: F811
    """Every batch that the loss sees, with and without the cache, and after a resume."""
    options = dict(dataset=shades, label_column="label", report_to="none", **{"validation_size": 9})
    status, _, err = call(train_vae.main, **{**VAE_OPTIONS, **options}, output_dir="vae", max_train_steps=1)
    assert status == 0, err
    seen = []

    def watch(prepared, scheduler, latents, generator, gamma=None, sampling="uniform", class_labels=None, *more):
        if class_labels is not None and prepared.training:
            seen.append((latents.detach(), class_labels))
        return diffusion_loss(prepared, scheduler, latents, generator, gamma, sampling, class_labels, *more)

    monkeypatch.setattr("fq_ldm.training.ldm.diffusion_loss", watch)
    options |= dict(vae="vae", output_dir="ldm", cache_latents=cached, label_dropout=0.2, checkpointing_steps=2)
    for steps in (2, 4):
        status, out, err = call(train_ldm.main, **{**LDM_OPTIONS, **options}, max_train_steps=steps)
        assert status == 0, err
    assert "3 classes by label: dark, grey, light" in out
    from fq_ldm import load_vae

    vae = load_vae(str(tmp_path / "vae"))
    hidden = 0
    for latents, labels in seen:
        images = vae.decode(vae.from_diffusion_latents(latents)).sample
        known = labels < 3
        hidden += int((~known).sum())
        assert torch.equal(shade(images)[known], labels[known])
    assert len(seen) == 4 and 0 < hidden < 16
    pipeline = FQLDMPipeline.from_pretrained(tmp_path / "ldm")
    assert pipeline.config.class_names == ["dark", "grey", "light"] and pipeline.unet.config.num_class_embeds == 4
    assert sum(pipeline.config.class_shares) == pytest.approx(1)
    options = dict(
        model="ldm", dataset=shades, channels=1, resolution=16, validation_size=9, num_samples=12, metrics=["classes"],
        num_inference_steps=2, output_dir="evaluation",
    )  # fmt: skip
    judged = dict(label_column="label", guidance_scale=2, classifier_epochs=2, classifier="judge.safetensors")
    status, _, err = call(evaluate.main, **options, **judged)
    assert status == 0, err
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert report["classes"]["class_names"] == ["dark", "grey", "light"]
    asked, shares = report["classes"]["samples_asked_for"], pipeline.config.class_shares
    assert sum(asked) == 12 and all(abs(n - 12 * share) <= 1 for n, share in zip(asked, shares, strict=True))
    metrics = report["metrics"]
    assert metrics["guidance_scale"] == 2 and 0 <= metrics["agreement_read"] <= metrics["agreement"] <= 1
    assert metrics["classifier_fid"] > 0 and "asked to be" in report["protocol"]["agreement"]
    # The next evaluation judges by the same classifier.
    monkeypatch.setattr("fq_ldm.evaluation.classes.train_classifier", None)
    status, _, err = call(evaluate.main, **options, **judged)
    assert status == 0, err
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["metrics"] == metrics
    status, _, err = call(evaluate.main, **options)
    assert status == 2 and "metrics: classes needs images with classes: give --label_column" in err


def test_a_kept_classifier_is_of_the_same_classes(shades, tmp_path, monkeypatch):
    images, _ = load_images(
        DataConfig(dataset=str(shades), channels=1, resolution=[16], validation_size=9, label_column="label")
    )
    config = EvaluationConfig(classifier=str(tmp_path / "judge.safetensors"), classifier_epochs=1)
    kept = make_judge(images, config, False, torch.device("cpu"))
    again = make_judge(images, config, False, torch.device("cpu"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in kept.state_dict().items())
    monkeypatch.setattr(images, "classes", replace(images.classes, names=("dark", "light", "grey")))
    with pytest.raises(DataError, match=r"judge.safetensors knows the classes \[.dark., .grey., .light.\], not "):
        make_judge(images, config, False, torch.device("cpu"))
    (tmp_path / "judge.safetensors").write_text("no weights")
    with pytest.raises(DataError, match="judge.safetensors holds none of these images"):
        make_judge(images, config, False, torch.device("cpu"))


def test_a_folder_without_subfolders_trains_without_classes(image_folder, capsys):
    config = DataConfig(dataset=str(image_folder), channels=1, resolution=[16], validation_size=9, label_column="label")
    assert load_images(config)[0].class_names == ()
    assert "has no subfolders of images, so there are no classes" in capsys.readouterr().out


def test_the_classifier_learns_what_it_is_shown():
    """Dark and light images, told apart; what it says of them in numbers."""
    images = smooth_images(64, 1, 16, 16) * 0.2 + torch.tensor([-0.5, 0.5]).repeat(32).view(-1, 1, 1, 1)
    labels = torch.arange(2).repeat(32)
    state = torch.random.get_rng_state()
    network = train_classifier([(images[:48], labels[:48])], 1, 2, epochs=30)
    assert torch.equal(state, torch.random.get_rng_state())
    classes, probability, features = network.judge(images)
    assert torch.equal(classes, labels) and features.shape == (64, 128)
    torch.testing.assert_close(probability, network(images).softmax(-1).max(-1).values)


def test_agreement_in_closed_form():
    features = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    judged = {
        "images": (torch.tensor([0, 1, 1, 0]), torch.tensor([0.95, 0.95, 0.5, 0.5]), features),
        "samples": (torch.tensor([0, 0, 2, 2]), torch.tensor([0.95, 0.95, 0.95, 0.5]), features),
    }
    asked = torch.tensor([0, 1, 2, 2])
    results, arrays = judge_classes(judged, torch.tensor([0, 1, 0, 0]), asked, ("a", "b", "c"))
    assert results["classifier_accuracy"] == 0.75 and results["images_read"] == 0.5
    assert results["samples_read"] == 0.75 and results["agreement"] == 0.75 and results["agreement_read"] == 0.5
    assert results["classifier_fid"] == pytest.approx(0, abs=1e-3)
    assert arrays["samples_asked_for"] == [1, 1, 2] and arrays["samples_read_as"] == [2, 0, 2]
    assert arrays["agreement"] == [1, 0, 1] and arrays["agreement_read"] == [1, 0, 0.5]
    results, arrays = judge_classes(judged, torch.tensor([0, 1, 0, 0]), None, ("a", "b", "c"))
    assert "agreement" not in results and "samples_asked_for" not in arrays


def test_classes_are_spread_by_their_shares():
    drawn = spread_classes([0.25, 0.0, 0.75], 200, seed=0)
    assert torch.bincount(drawn, minlength=3).tolist() == [50, 0, 150]
    assert not torch.equal(drawn, drawn.sort().values) and torch.equal(drawn, spread_classes([0.25, 0.0, 0.75], 200, 0))


def test_other_classes_than_the_pipelines_are_refused(call, conditional, shades, tmp_path):  # noqa: F811
    conditional.save_pretrained(tmp_path / "ldm")
    options = dict(model="ldm", dataset=shades, channels=3, convert_images=True, resolution=[8, 12], validation_size=9)
    status, _, err = call(
        evaluate.main, **options, label_column="label", output_dir="out", num_samples=4, metrics=["classes"]
    )
    assert status == 2 and "label_column: the images have the classes dark, grey, light, ldm has ant, bee, cow" in err


def test_guidance_without_classes_is_refused(call, pipeline, image_folder, tmp_path):  # noqa: F811
    pipeline.save_pretrained(tmp_path / "ldm")
    status, _, err = call(
        evaluate.main, model="ldm", dataset=image_folder, channels=3, convert_images=True, resolution=[8, 12],
        validation_size=9, output_dir="out", guidance_scale=2, metrics=["spectrum"], num_inference_steps=2,
    )  # fmt: skip
    assert status == 2 and "guidance_scale: ldm knows no classes" in err
