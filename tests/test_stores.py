"""Where weights come from: paths before ids, and a store that is never out of date."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import safetensors.numpy

from diffup_jax import weights
from diffup_jax.backbones import hub as hub_files
from diffup_jax.backbones import stores
from diffup_jax.types import DiffUpError

REPO = "org/some-network"


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """The folder of an empty Hugging Face cache, offline; DIFFUP_CACHE beside it."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return folder


def _write(file, *keys):
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.full(4, i, np.float32) for i, key in enumerate(keys)}
    safetensors.numpy.save_file(arrays, file)
    return file


def _sharded(folder):
    """Two shards with their index, as save_pretrained writes them."""
    shards = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    for key, name in shards.items():
        _write(folder / name, key)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return index


def _cached(hub, *names, revision="main"):
    """The snapshot folder of REPO in a Hugging Face cache that holds those files."""
    root = hub / "models--org--some-network"
    snapshot = root / "snapshots" / "0123"
    for name in names:
        _write(snapshot / name, "a")
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text("0123")
    return snapshot


def _locate(option, *, packaged=None, default=""):
    return stores.locate("net", option, packaged=packaged, default=default)


def test_nothing_means_packaged_then_the_default_id(hub, tmp_path):
    file = _write(tmp_path / "here.safetensors", "a")
    snapshot = _cached(hub, "model.safetensors")
    for empty in ("", None):
        found = _locate(empty, packaged=file, default=REPO)
        assert found == stores.Source((file,), "packaged", tmp_path)
        found = _locate(empty, default=REPO)
        assert found.files == (snapshot / "model.safetensors",)
        assert (found.origin, found.folder) == (REPO, snapshot)
        with pytest.raises(DiffUpError, match="no weights packaged.*config.backbone"):
            _locate(empty)


def test_a_path_wins_over_an_id_and_variables_are_expanded(hub, tmp_path, monkeypatch):
    _cached(hub, "model.safetensors")
    local = _write(tmp_path / REPO / "anything.safetensors", "a")
    assert _locate(REPO).files[0].resolve() == local
    monkeypatch.setenv("MINE", str(tmp_path / "org"))
    assert _locate("$MINE/some-network").files == (local,)
    assert _locate("$MINE/some-network/anything.safetensors").files == (local,)


def test_an_id_may_name_revision_and_file(hub):
    snapshot = _cached(hub, "model.safetensors", "other.safetensors", revision="v1")
    assert _locate(f"{REPO}@v1").files == (snapshot / "model.safetensors",)
    found = _locate(f"{REPO}@v1:other.safetensors")
    assert found.files == (snapshot / "other.safetensors",)
    with pytest.raises(DiffUpError, match="cannot be downloaded"):
        _locate(REPO)  # main is another revision


def test_shards_are_read_as_one(hub, tmp_path):
    _sharded(tmp_path / "folder")
    assert stores.read(_locate("folder")).keys() == {"a", "b"}
    _sharded(_cached(hub))
    with pytest.raises(DiffUpError, match="cannot be downloaded"):
        _locate(REPO)  # whether there is a single file is not known offline
    absent = hub / "models--org--some-network" / ".no_exist" / "0123"
    absent.mkdir(parents=True)
    (absent / "model.safetensors").touch()
    assert stores.read(_locate(REPO)).keys() == {"a", "b"}


def test_broken_folders_are_told(tmp_path):
    folder = tmp_path / "folder"
    index = _sharded(folder)
    _write(folder / "model-2-of-2.safetensors", "a")
    with pytest.raises(DiffUpError, match=r"holds \['a'\], which another file"):
        stores.read(_locate("folder"))
    (folder / "model-2-of-2.safetensors").unlink()
    with pytest.raises(DiffUpError, match=r"No weights file at .*model-2-of-2"):
        stores.read(_locate("folder"))
    for bad in ("{", '{"weight_map": {"a": "../a.safetensors"}}', "[]"):
        index.write_text(bad)
        with pytest.raises(DiffUpError, match="index of shards"):
            _locate("folder")
    index.unlink()
    _write(folder / "model-3-of-3.safetensors", "a")
    with pytest.raises(DiffUpError, match="model-1-of-2.*model-3-of-3.*exactly one"):
        _locate("folder")
    with pytest.raises(DiffUpError, match="no .safetensors file"):
        _locate(str(tmp_path))


def test_offline_names_id_cache_and_command(hub):
    with pytest.raises(DiffUpError) as caught:
        _locate(None, default=REPO)
    for part in (repr(REPO), repr(str(hub)), "diffup backbones fetch net\n"):
        assert part in str(caught.value)
    with pytest.raises(DiffUpError, match=f"fetch net --weights {REPO}"):
        _locate(REPO)
    with pytest.raises(DiffUpError, match="neither a file, nor a folder, nor a Hugg"):
        _locate("no such thing")


def test_an_endpoint_without_address_is_not_tried(monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://nowhere.invalid")
    monkeypatch.setattr(hub_files.urllib.request, "getproxies", dict)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("was tried")
    )
    with pytest.raises(DiffUpError, match="nowhere.invalid has no address here"):
        _locate(REPO)


def test_downloads_ask_for_weights_and_what_lies_beside_them(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub import constants, errors

    asked = []

    def download(repo, file, *, revision):
        asked.append((repo, file, revision))
        if file not in ("model.safetensors", "config.json"):
            raise errors.EntryNotFoundError(file)
        return str(_cached(hub, file) / file)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_files, "_reachable", lambda _: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = _locate(REPO)
    assert asked[0] == (REPO, "model.safetensors", None)
    assert (found.folder / "config.json").is_file()
    before = len(asked)
    assert _locate(REPO) == found
    assert len(asked) == before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("GatedRepoError", "accepted their licence.*hf auth login"),
        ("RepositoryNotFoundError", "Hugging Face has no 'org/some-network'"),
    ],
)
def test_refusals_are_told_apart(monkeypatch, error, told):
    import huggingface_hub
    from huggingface_hub import constants, errors

    def download(*_, **__):
        # Their constructor wants a response of the library's own HTTP client.
        kind = getattr(errors, error)
        raise kind.__new__(kind)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_files, "_reachable", lambda _: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(DiffUpError, match=told):
        _locate(REPO)


def test_a_repository_without_safetensors_is_told(hub):
    absent = hub / "models--org--some-network" / ".no_exist" / "0123"
    _cached(hub)
    absent.mkdir(parents=True)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (absent / name).touch()
    with pytest.raises(DiffUpError, match="has no model.safetensors; only safeten"):
        _locate(REPO)


# --- The store ------------------------------------------------------------------------


class _Maker:
    """Counts how often a conversion is run."""

    def __init__(self, value: float):
        self.value, self.runs = value, 0

    def __call__(self):
        self.runs += 1
        return {"params": {"w": np.full(32, self.value, np.float32)}}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Converts a source of any size, and answers (value, times made)."""
    monkeypatch.setattr(stores, "_WORTH_KEEPING", 0)

    def convert(file, value=0.0, sizes="1"):
        maker = _Maker(value)
        source = stores.Source((file,), str(file), file.parent)
        params, digest = stores.converted("net", source, sizes=sizes, make=maker)
        assert digest == weights.digest(params)
        return float(params["params"]["w"][0]), maker.runs

    return convert


def test_the_second_time_nothing_is_made(kept, tmp_path):
    file = _write(tmp_path / "w.safetensors", "a")
    assert kept(file, 1.0) == (1.0, 1)
    assert kept(file, 2.0) == (1.0, 0)
    moved = tmp_path / "elsewhere.safetensors"
    os.rename(file, moved)
    assert kept(moved, 3.0) == (1.0, 0)  # the same content


def test_another_file_other_sizes_or_other_code_are_made(kept, tmp_path, monkeypatch):
    file = _write(tmp_path / "w.safetensors", "a")
    assert kept(file, 1.0) == (1.0, 1)
    assert kept(file, 2.0, sizes="2") == (2.0, 1)
    _write(file, "b")
    os.utime(file, ns=(0, 12345))
    assert kept(file, 3.0, sizes="2") == (3.0, 1)
    monkeypatch.setattr(stores, "converter", lambda sizes: "f" * 16)
    assert kept(file, 4.0, sizes="2") == (4.0, 1)
    names = sorted(p.name for p in stores.cache_folder().glob("net-*"))
    assert len(names) == 2  # for each content the newest
    assert any("ffffffff" in name for name in names)


def test_a_damaged_store_is_made_again(kept, tmp_path):
    file = _write(tmp_path / "w.safetensors", "a")
    kept(file, 1.0)
    (stored,) = stores.cache_folder().glob("net-*")
    stored.write_bytes(stored.read_bytes()[:-8])
    assert kept(file, 2.0) == (2.0, 1)
    assert kept(file, 3.0) == (2.0, 0)
    for seen in stores.cache_folder().glob("seen-*"):
        seen.write_text("?")
    assert kept(file, 4.0) == (2.0, 0)
    assert not list(stores.cache_folder().glob(".*"))


def test_a_store_that_cannot_be_written_is_done_without(kept, tmp_path, monkeypatch):
    file = _write(tmp_path / "w.safetensors", "a")
    (tmp_path / "plain").write_text("no folder")
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path / "plain"))
    for value in (1.0, 2.0):
        with pytest.warns(RuntimeWarning, match="DIFFUP_CACHE names another"):
            assert kept(file, value) == (value, 1)


def test_small_sources_are_not_kept(tmp_path):
    file = _write(tmp_path / "w.safetensors", "a")
    source = stores.Source((file,), "w", tmp_path)
    maker = _Maker(1.0)
    for _ in range(2):
        stores.converted("net", source, sizes="", make=maker)
    assert maker.runs == 2
    assert not stores.cache_folder().exists()
