"""Upload of models to the Hub, against a folder that stands in for it."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from helpers.checkpoint_files import check_same_model, random_model
from helpers.models import small_config
from huggingface_hub.utils import HFValidationError

from solo_infer import SOLO
from solo_infer.config import Categories
from solo_infer.errors import ConfigError, OfflineError, WeightsError
from solo_infer.weights.publish import model_card


@pytest.fixture
def model():
    return random_model(small_config("decoupled_light"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return the folder and the calls of a stand-in for the Hub."""
    for name in ("SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    root, calls = tmp_path / "hub", {}

    class Api:
        def __init__(self, **options):
            calls["api"] = options

        def create_repo(self, repo_id, **options):
            calls["create_repo"] = options
            (root / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])

        def create_branch(self, repo_id, **options):
            calls["create_branch"] = options

        def file_exists(self, repo_id, filename, **options):
            return (root / repo_id / filename).exists()

        def upload_folder(self, *, repo_id, folder_path, **options):
            calls["upload_folder"] = options
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url="commit", pr_url="pull request")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return SimpleNamespace(root=root, calls=calls, api=Api)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uploaded_model_loads_again(model, hub, dtype):
    model.to(dtype=dtype)
    url = model.push_to_hub("me/nuts", token="secret", private=True, license="mit")
    assert url == "commit"
    folder = hub.root / "me/nuts"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    check_same_model(SOLO.from_pretrained(folder, device="cpu", dtype=dtype), model)
    assert hub.calls["api"]["token"] == "secret" and hub.calls["create_repo"]["private"] is True
    assert "create_branch" not in hub.calls and "secret" not in (folder / "README.md").read_text()


def test_branch_message_and_pull_request(model, hub):
    options = {"revision": "v2", "commit_message": "Better masks", "create_pr": True}
    assert model.push_to_hub("me/nuts", **options) == "pull request"
    assert hub.calls["create_branch"] == {"branch": "v2", "exist_ok": True}
    assert hub.calls["upload_folder"] == options


def test_an_existing_card_is_kept(model, hub):
    (hub.root / "me/nuts").mkdir(parents=True)
    (hub.root / "me/nuts/README.md").write_text("mine")
    model.push_to_hub("me/nuts")
    assert (hub.root / "me/nuts/README.md").read_text() == "mine"


@pytest.mark.parametrize("variable", ["SOLO_INFER_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode_forbids_it(model, hub, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match="me/nuts cannot be uploaded because offline mode is on"):
        model.push_to_hub("me/nuts")
    assert not hub.calls


@pytest.mark.parametrize("repo_id", ["nuts", "a/b/c", "/nuts", "me/", "", None, 5])
def test_repo_ids_without_owner_are_refused(model, hub, repo_id):
    with pytest.raises(ConfigError, match="expected 'owner/name'"):
        model.push_to_hub(repo_id)
    assert not hub.calls


@pytest.mark.parametrize(
    "error",
    [HFValidationError("bad\nname"), ConnectionError("unreachable"), OSError("x" * 9000)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("method", ["create_repo", "file_exists", "upload_folder"])
def test_errors_of_the_hub(model, hub, monkeypatch, method, error):
    def fail(*values, **options):
        raise error

    monkeypatch.setattr(hub.api, method, fail)
    with pytest.raises(WeightsError, match="'me/nuts' cannot be uploaded: .*hf auth login") as caught:
        model.push_to_hub("me/nuts")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800


def test_model_card():
    names = ("nut", "`bolt`", "line\nfeed", *(f"class {number}" for number in range(200)))
    config = small_config("decoupled_light")
    architecture = replace(config.architecture, num_classes=len(names))
    config = replace(config, architecture=architecture, categories=Categories(names))
    card = huggingface_hub.ModelCard(model_card(config, "me/nuts", "apache-2.0"))
    assert card.data.to_dict() == {
        "library_name": "solo-infer",
        "license": "apache-2.0",
        "pipeline_tag": "image-segmentation",
        "tags": ["instance-segmentation", "solo"],
    }
    assert card.text.strip().startswith("# nuts") and 'load_model("me/nuts")' in card.text
    assert "`nut`, `'bolt'`, `line\\nfeed`, `class 0`" in card.text and "... 203 in all" in card.text
    assert "license" not in huggingface_hub.ModelCard(model_card(config, "me/nuts")).data.to_dict()
