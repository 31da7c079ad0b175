"""Saving of models to a folder and to the Hugging Face Hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from solo_infer.config import ModelConfig
from solo_infer.config.validation import require, require_path
from solo_infer.models.base import SegmentationNetwork
from solo_infer.weights.publish import upload_model
from solo_infer.weights.save import save_checkpoint


class Publishing:
    """Methods of ``Segmenter`` that save a model."""

    config: ModelConfig
    network: SegmentationNetwork

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which ``from_pretrained`` reads.

        The weights keep the dtype of the network: those of a bfloat16 model take half the space of float32.

        Raises:
            CacheError: The directory cannot be written.
        """
        return save_checkpoint(self.config, self.network.state_dict(), require_path("folder", folder))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        license: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model with solo-infer",
        create_pr: bool = False,
    ) -> str:
        """Upload the model and a model card to the Hugging Face Hub, where ``from_pretrained`` finds it.

        The repo is created if it does not exist. A card that it has already is kept.

        Args:
            repo_id: Repo of the model, "owner/name".
            token: Access token. Defaults to that of ``hf auth login`` or ``HF_TOKEN``.
            private: Whether a new repo is private. Defaults to the setting of the owner.
            license: License of the weights for the card, e.g. "apache-2.0". Defaults to none.
            revision: Branch to upload to. Defaults to the main branch.
            commit_message: Summary of the commit.
            create_pr: Whether to open a pull request instead of committing to the branch.

        Returns:
            The URL of the commit, or of the pull request.

        Raises:
            OfflineError: Offline mode is on.
            WeightsError: The Hub refuses the upload or cannot be reached.
            ConfigError: ``repo_id`` is not of the form "owner/name".
        """
        valid = isinstance(repo_id, str) and repo_id.count("/") == 1 and all(repo_id.split("/"))
        require(valid, f"repo_id={repo_id!r}: expected 'owner/name'.")
        with tempfile.TemporaryDirectory() as folder:
            return upload_model(
                self.save_pretrained(folder),
                self.config,
                repo_id,
                token=token,
                private=private,
                license=license,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
