"""URLs that cannot be reached as this machine is set up: one sentence with the mend, whatever a library raises."""

from __future__ import annotations

import importlib.util

import fsspec
import pytest

from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError, open_source
from mmsa_shards.errors import PlaceError
from mmsa_shards.folder import Folder
from mmsa_shards.job import describe
from mmsa_shards.manifest import Manifest, ManifestError
from mmsa_shards.places import locate, opened
from mmsa_shards.prepare import prepare
from mmsa_shards.read import files_of, read_records
from mmsa_shards.rejects import read_rejects


class Unlucky(fsspec.AbstractFileSystem):
    """Fails at every call as the libraries of object stores do, with an error that is no OSError."""

    protocol = "unlucky"
    error: Exception = Exception("Unable to locate\n credentials")

    def info(self, path, **kwargs):
        raise self.error

    def ls(self, path, detail=True, **kwargs):
        raise self.error

    def isdir(self, path):
        raise self.error

    def cat_file(self, path, start=None, end=None, **kwargs):
        raise self.error

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        raise self.error

    def rm_file(self, path):
        raise self.error

    def _open(self, path, mode="rb", **kwargs):
        raise self.error


@pytest.fixture(autouse=True)
def unlucky():
    fsspec.register_implementation("unlucky", Unlucky, clobber=True)


@pytest.mark.parametrize(
    "use",
    [
        lambda url, options: files_of(url),
        lambda url, options: describe([url], options, None),
        lambda url, options: list(read_records(url, options)),
        lambda url, options: opened(url).__enter__(),
        lambda url, options: Folder(url).names(),
        lambda url, options: Folder(url).read("x"),
        lambda url, options: Folder(url).write("x", b""),
        lambda url, options: Folder(url).remove("x"),
        lambda url, options: read_rejects(url),
        lambda url, options: prepare(["a.smi"], url, options),
    ],
)
def test_an_error_of_a_library_is_a_sentence(use, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.smi").write_text("CCO")
    options = type(options)(**{**vars(options), "work_dir": str(tmp_path / "work")})
    with pytest.raises(
        PlaceError, match=r"^cannot reach unlucky://b/a\.smi\S* \(Unable to locate credentials\): check"
    ):
        use("unlucky://b/a.smi", options)


def test_a_manifest_and_a_download_say_it_in_their_errors():
    with pytest.raises(ManifestError, match=r"^cannot reach unlucky://b/manifest\.json \(Unable to locate cred"):
        Manifest.load("unlucky://b")
    source = open_source("unlucky://b")
    for ask in (lambda: source.names("x"), lambda: source.text("x"), lambda: source.version("x")):
        with pytest.raises(DownloadError, match=r"^cannot reach unlucky://b/x \(Unable to locate credentials\)"):
            Patience(tries=1).call(ask)


def test_what_a_disk_or_server_refuses_stays_what_it_is(monkeypatch):
    for error in (FileNotFoundError("x"), PermissionError("x"), OSError(28, "No space left on device")):
        monkeypatch.setattr(Unlucky, "error", error)
        with pytest.raises(type(error)):
            Folder("unlucky://b").names()


@pytest.mark.parametrize(
    ("url", "package", "words"),
    [
        ("gs://b/x", "gcsfs", r"cannot reach gs://b/x \(.*gcsfs.*\): run pip install 'mmsa-dist\[cloud\]'"),
        ("simplecache::gs://b/x", "gcsfs", r"run pip install 'mmsa-dist\[cloud\]'"),
        ("s3://b/x", "s3fs", r"cannot reach s3://b/x \(.*s3fs.*\): run pip install 'mmsa-dist\[cloud\]'"),
        ("abfs://b/x", "adlfs", r"cannot reach abfs://b/x \(.*adlfs.*\): install the package it names"),
        ("nope://b/x", "nope", r"cannot reach nope://b/x \(Protocol not known: nope\): name a path"),
    ],
)
def test_a_missing_package_and_an_unknown_protocol(url, package, words):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(PlaceError, match=words):
        locate(url)
    with pytest.raises(DownloadError, match="cannot reach"):
        open_source(url)
