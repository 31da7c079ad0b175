"""Upload of a saved model to the Hugging Face Hub, with a model card."""

from __future__ import annotations

from pathlib import Path

from solo_infer._version import __version__
from solo_infer.config import ModelConfig
from solo_infer.errors import OfflineError, WeightsError
from solo_infer.runtime import environment
from solo_infer.runtime.messages import escaped, quoted
from solo_infer.weights.hub import hub_errors, one_line

CARD_NAME = "README.md"
_MAX_CLASSES = 100  # that a card lists


def upload_model(
    folder: Path,
    config: ModelConfig,
    repo_id: str,
    *,
    token: str | None,
    private: bool | None,
    license: str | None,
    revision: str | None,
    commit_message: str,
    create_pr: bool,
) -> str:
    """Upload a folder of ``save_pretrained``; see ``Segmenter.push_to_hub``."""
    if environment.is_offline():
        raise OfflineError(
            f"{repo_id} cannot be uploaded because offline mode is on ({environment.OFFLINE} or "
            "HF_HUB_OFFLINE is set): unset the variable."
        )
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="solo-infer", library_version=__version__)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if not api.file_exists(repo_id, CARD_NAME, revision=revision):
            (folder / CARD_NAME).write_text(model_card(config, repo_id, license), encoding="utf-8")
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
    except hub_errors() as error:
        raise WeightsError(
            f"{quoted(repo_id)} cannot be uploaded: {one_line(error)}. Check its name, and that you are "
            "logged in (hf auth login) with a token that may write."
        ) from error
    return str(commit.pr_url if create_pr else commit.commit_url)


def model_card(config: ModelConfig, repo_id: str, license: str | None = None) -> str:
    """Return the text of a model card: metadata, architecture, classes, and code that loads the model.

    Args:
        config: Configuration of the model.
        repo_id: Repo of the model.
        license: License identifier of the Hub. Defaults to none.
    """
    from huggingface_hub import ModelCard, ModelCardData

    architecture, preprocessing = config.architecture, config.preprocessing
    data = ModelCardData(
        library_name="solo-infer",
        license=license,
        pipeline_tag="image-segmentation",
        tags=["instance-segmentation", architecture.family],
    )
    names = [f"`{escaped(name).replace('`', chr(39))}`" for name in config.categories.names]
    more = f", ... {len(names)} in all" if len(names) > _MAX_CLASSES else ""
    name = repo_id.split("/")[1]
    text = f"""# {name}

Instance segmentation model of the family {architecture.family} with the backbone {architecture.backbone},
saved by solo-infer {__version__} (`pip install solo-infer`).

```python
from solo_infer import load_model

result = load_model("{repo_id}")("street.jpg")
result.save("street_segmented.jpg")
```

- Input: images scaled to at most {preprocessing.short_side} pixels on the shorter side and
  {preprocessing.long_side} on the longer side.
- Output: masks, boxes, classes and scores of instances.
- Classes: {", ".join(names[:_MAX_CLASSES])}{more}
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))
