"""Repositories of the model hub: what one holds, and its files, each fetched whole and verified or not at all."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffusion.training.files import sha256
from scripts.fetching.download import download, told, without_secrets
from scripts.job.errors import UsageError

# Configuration, tokenizer and safetensors; never code, or the same weights for other frameworks.
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
UNWANTED = ("onnx/*", "openvino/*", "coreml/*")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


class Content(NamedTuple):
    """What a file holds: its size, and its SHA-256 (of a large file) or git's SHA-1 (of a small one)."""

    size: int
    checksum: str

    def is_in(self, path: Path) -> bool:
        """Whether the file at `path` holds just this."""
        from huggingface_hub.utils.sha import git_hash

        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return self.checksum == (sha256(path) if len(self.checksum) == 64 else git_hash(path.read_bytes()))


class Repository(NamedTuple):
    """A repository at one commit (`revision`): path of each file -> what it holds."""

    name: str
    revision: str
    files: dict[str, Content]

    @property
    def wanted(self) -> list[str]:
        """The paths of what a run needs."""
        return [path for path in self.files if _among(path, WANTED) and not _among(path, UNWANTED)]

    @property
    def pickled(self) -> list[str]:
        """The paths of pickled weights."""
        return sorted(path for path in self.files if _among(path, PICKLED))


def find_repository(name: str, revision: str | None = None) -> Repository:
    """A repository at a commit, the newest if None is named; raises UsageError."""
    from huggingface_hub import HfApi, constants

    with told(name):
        try:
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=timeout)
        except (ValueError, TypeError, KeyError):  # the log-in page of a network, for one
            hub = without_secrets(constants.ENDPOINT)
            raise UsageError(f"{name}: {hub} answers unlike a model hub; check HF_ENDPOINT") from None
    files = {}
    for each in info.siblings or ():
        path, checksum = each.rfilename, each.lfs.sha256 if each.lfs else each.blob_id
        if each.size is None or checksum is None:
            raise UsageError(f"{name}: the hub does not tell sizes and checksums; expected one like huggingface.co")
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path:
            raise UsageError(f"{name}: the repository has a file {path!r}, which would lie outside of its folder")
        files[path] = Content(each.size, checksum)
    return Repository(info.id, info.sha, files)


def unfinished(path: Path, content: Content) -> Path:
    """Where a file lies while it is fetched: named by its content, so that only more of the same is appended."""
    return path.with_name(f".{path.name}.{content.checksum}")


def fetch(repository: Repository, path: str, folder: Path) -> None:
    """Fetches a file to folder/path, going on where an earlier attempt was interrupted; raises UsageError."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    content, target = repository.files[path], folder / path
    part, what = unfinished(target, content), f"{repository.name}/{path}"
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        if file.tell() > content.size:
            file.truncate(0)
        url = hf_hub_url(repository.name, path, revision=repository.revision)
        download(what, url, file, content.size, build_hf_headers())
    if not content.is_in(part):
        part.unlink()
        raise UsageError(f"{what}: what came is not what the hub announced (checksum); run it again to fetch it anew")
    part.replace(target)


def _among(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)
