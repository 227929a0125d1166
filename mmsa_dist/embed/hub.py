"""Publishing a model on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from mmsa_dist.embed.pretrained import CARD, CONFIG, REFERENCE, WEIGHTS, PretrainedModel


class HubError(ValueError):
    """Publishing failed; the message says where and what to do."""


def publish(
    model: PretrainedModel,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
) -> str:
    """Uploads the files of a model in one commit; creates the repository if it does not exist.

    Args:
        model: the model that `Embedder.from_pretrained` will load from the hub.
        repo_id: ``organisation/name``.
        private: whether a newly created repository is private; None takes the organisation's default.
        token: of an account with write access; None takes the one that ``hf auth login`` stored.
        commit_message: None names the model by its digest.
        create_pr: whether the commit becomes a pull request.
        license: of the weights, as `PretrainedModel.save` takes it.

    Returns:
        URL of the commit.

    Raises:
        HubError: the hub refuses or does not respond.
        ValueError: `license` is empty.
    """
    api = HfApi(token=token, library_name="mmsa-dist")
    try:
        with tempfile.TemporaryDirectory(prefix="mmsa-") as parent:
            folder = model.save(Path(parent) / "model", license=license)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                allow_patterns=[CONFIG, WEIGHTS, REFERENCE, CARD],
                commit_message=commit_message or f"Model {model.digest[:12]}",
                create_pr=create_pr,
            )
    except (HTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise HubError(f"the model was not published as {repo_id} ({reason}); {_mend(error)}") from error
    return str(commit.pr_url if create_pr else commit.commit_url)


def _mend(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return "log in by `hf auth login`, or pass a token of an account that may write there"
    if isinstance(error, HFValidationError):
        return "name it organisation/name"
    return "see whether this machine reaches the hub (the environment's HF_ENDPOINT and proxies), and try again"
