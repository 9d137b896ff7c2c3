"""Uploads: what is checked before, what goes up, what stays."""

import pytest
import yaml
from fake_hub import FakeHub
from huggingface_hub import constants

from fq_ldm.cards import check_hub, push_to_hub
from fq_ldm.cards.hub import public
from fq_ldm.options import DataError, TrainingConfig, UserError
from fq_ldm.pipelines.loading import write_card


@pytest.fixture
def hub(monkeypatch):
    """A fake Hub that ann is logged in at."""
    with FakeHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_ann")
        yield hub


def wish(folder="out", **options):
    return TrainingConfig(**{"output_dir": str(folder), "push_to_hub": True, "hub_model_id": "ann/faces", **options})


def test_only_what_people_load_and_look_at_goes_up(hub, tmp_path, capsys):
    wanted = ("README.md", "metrics.json", "samples.png", "model_index.json", "pipeline_fq_ldm.py", "vqvae/fq_model.py")
    wanted += ("vqvae/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json")
    others = ("bad_images.txt", "checkpoints/step_1/model.safetensors", "logs/events.out", "latents/tokens.npy")
    others += ("wandb/run.log", "config.json.partial", "previews/00000001.png", "unet/model.safetensors.partial")
    for name in wanted + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    push_to_hub(wish(tmp_path), {"dataset": "/home/ann/secret/faces", "vae": "runs/vae", "resolution": [64]})
    files = hub.files("ann/faces")
    assert set(files) == {*wanted, "training_config.yaml"}
    assert all(files[name] == name.encode() for name in wanted)
    config = yaml.safe_load(files["training_config.yaml"])
    assert config == {"dataset": "path/to/faces", "vae": "runs/vae", "resolution": [64]}
    assert f"uploaded to {hub.url}/ann/faces" in capsys.readouterr().out


def test_paths_of_this_machine_are_not_public():
    assert public({"a": "/x/y/", "b": "~/z", "c": "C:\\d\\e", "d": "../f", "e": ["/g/h", 3], "f": "user/repo"}) == {
        "a": "path/to/y", "b": "path/to/z", "c": "path/to/e", "d": "path/to/f", "e": ["path/to/h", 3], "f": "user/repo"
    }  # fmt: skip


def test_what_is_asked_before_training(hub):
    check_hub(wish(hub_private=True))
    assert hub.repositories["ann/faces"]["private"]
    check_hub(wish(hub_private=True))  # its own run again
    check_hub(wish(hub_model_id="ann/open"))
    assert not hub.repositories["ann/open"]["private"]
    check_hub(wish(push_to_hub=False, hub_model_id="bob/faces"))
    hub.put("bob/known", {})
    for options, message in (
        (dict(hub_model_id="bob/faces"), "hub_model_id: bob/faces cannot be written to"),
        (dict(hub_model_id="bob/known"), "hub_model_id: bob/known cannot be written to"),
        (dict(hub_model_id="ann/open", hub_private=True), "hub_private: ann/open is there, and public"),
        (dict(hub_model_id=None), "push_to_hub: say where to, so that no other model is overwritten"),
        (dict(hub_model_id="ann/a--b"), "hub_model_id: ann/a--b can be no repository's name"),
    ):
        with pytest.raises(UserError, match=message):
            check_hub(wish(**options))
    with pytest.raises(UserError, match="hub_model_id: must be user/name, not faces"):
        wish(hub_model_id="faces")


def test_nobody_and_nothing(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "README.md").write_text("card")
    with pytest.raises(DataError, match="push_to_hub: the Hub cannot be reached"):
        check_hub(wish())
    with pytest.raises(DataError, match="the upload failed .* has everything: run the same command again"):
        push_to_hub(wish(tmp_path), {})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="push_to_hub: nobody is logged in: run hf auth login"):
        check_hub(wish())


def test_a_pipeline_from_no_folder_has_a_card_of_its_own(tmp_path, monkeypatch):
    """Not that of the folder somebody happens to work in."""
    (tmp_path / "README.md").write_text("secret")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "target").mkdir()
    monkeypatch.chdir(tmp_path)
    write_card(None, tmp_path / "target", "ann/bare")
    assert 'from_pretrained("ann/bare"' in (tmp_path / "target" / "README.md").read_text()
    write_card(tmp_path, tmp_path / "target", "ann/bare")
    assert (tmp_path / "target" / "README.md").read_text() == "secret"
