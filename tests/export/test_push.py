"""An export goes up to a hub and comes down again with the standard client, over HTTP."""

from pathlib import Path

import huggingface_hub
import local_hub
import pytest
import torch
from test_files import export

from nanochat.checkpoint import folder
from nanochat.checkpoint.certificate import colour_of
from nanochat.checkpoint.runs import resolve
from nanochat.export.push import push

NAME = "me/tiny-chat"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with local_hub.running("hf_secret") as found:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", found.token)
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
        monkeypatch.delenv("NANOCHAT_HUB_DIR", raising=False)
        yield found


@torch.no_grad()
def test_what_is_uploaded_is_what_is_downloaded(make, hub, tmp_path: Path, capsys) -> None:
    out = export(make(), tmp_path / "hf")
    (out / "README.md").write_text("---\ntags: [nanochat]\n---\n")
    push(out, NAME, private=True, confirm=False, force=False)
    assert not hub.repos and "would upload" in capsys.readouterr().out
    push(out, NAME, private=True, confirm=True, force=False)
    assert hub.visibility == {NAME: "private"}
    assert hub.repos[NAME] == {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    push(out, NAME, private=True, confirm=True, force=False)  # again: nothing changes
    path = resolve(f"hf:{NAME}", tmp_path)
    ids = torch.arange(40)[None]
    assert torch.equal(folder.load_gpt(path)(ids), folder.load_gpt(make())(ids))
    there = huggingface_hub.snapshot_download(NAME, local_dir=tmp_path / "there")
    assert colour_of(Path(there)).colour == "green"


def test_a_hub_that_refuses_is_a_line(make, hub, tmp_path: Path, monkeypatch) -> None:
    out = export(make(), tmp_path / "hf")
    hub.full = True
    with pytest.raises(ValueError, match=r"the hub refused the upload: .*model.safetensors"):
        push(out, NAME, private=True, confirm=True, force=False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match=r"the hub refused the upload: .*401.*hf auth login"):
        push(out, NAME, private=True, confirm=True, force=False)
