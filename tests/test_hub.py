from types import SimpleNamespace

from fq_ldm.cards import hub
from fq_ldm.options import TrainingConfig


def test_upload_leaves_checkpoints_and_logs_behind(monkeypatch, tmp_path):
    calls = {}

    class Api:
        def create_repo(self, repository, **kwargs):
            calls["create"] = (repository, kwargs)
            return SimpleNamespace(repo_id=f"someone/{repository}")

        def upload_folder(self, **kwargs):
            calls["upload"] = kwargs

    monkeypatch.setattr(hub, "HfApi", Api)
    hub.push_to_hub(TrainingConfig(output_dir=str(tmp_path / "faces"), hub_private=True))
    assert calls["create"] == ("faces", {"private": True, "exist_ok": True})
    assert calls["upload"]["repo_id"] == "someone/faces"
    assert set(calls["upload"]["ignore_patterns"]) == {"checkpoints/**", "logs/**", "latents/**"}
