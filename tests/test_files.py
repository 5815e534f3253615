"""Files are whole or absent, and hashes are those of the bytes."""

import json
import os
import subprocess

import pytest
from filelock import FileLock

from lib.pipeline import files, fingerprint, machine


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = files.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        files.write_json(path, {"x": float("nan")})

    def rows():
        yield {"x": 2}
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        files.write_jsonl(path, rows())
    assert json.loads(path.read_text()) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


def test_json_lines_round_trip_and_name_the_broken_line(tmp_path):
    path = files.write_jsonl(tmp_path / "a.jsonl", [{"text": "a\u2028b\nc"}, {"n": 1}])
    assert files.read_jsonl(path) == [{"text": "a\u2028b\nc"}, {"n": 1}]
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="a.jsonl, line 2, is not valid JSON"):
        files.read_jsonl(path)


def test_canonical_hash_ignores_the_order_of_keys():
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_text("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_cache_sees_a_changed_file(tmp_path):
    path, cache = tmp_path / "a", files.HashCache(tmp_path / "hashes.json")
    path.write_text("abc")
    first = cache.sha256(path)
    cache.save()
    path.write_text("abcd")
    assert files.HashCache(tmp_path / "hashes.json").sha256(path) != first == files.sha256_text("abc")


def test_a_folder_is_there_when_all_of_it_is(tmp_path):
    with pytest.raises(RuntimeError), files.whole_folder(tmp_path / "model") as partial:
        partial.mkdir()
        raise RuntimeError("killed")
    assert os.listdir(tmp_path) == []
    for text in ("old", "new"):
        with files.whole_folder(tmp_path / "model") as partial:
            partial.mkdir()
            (partial / "weights").write_text(text)
    assert os.listdir(tmp_path) == ["model"] and (tmp_path / "model" / "weights").read_text() == "new"


def test_a_kept_folder_is_written_once_and_whole(tmp_path):
    def broken(scratch):
        scratch.mkdir()
        raise RuntimeError("killed")

    def beaten(scratch):
        write(scratch, "mine")
        write(tmp_path / "key", "the other's")

    def write(folder, text="first"):
        folder.mkdir()
        (folder / "weights").write_text(text)

    with pytest.raises(RuntimeError):
        files.kept_folder(tmp_path / "key", broken)
    assert os.listdir(tmp_path) == []
    for ours in (beaten, broken):  # another process was first; then it is there and nothing is written
        assert (files.kept_folder(tmp_path / "key", ours) / "weights").read_text() == "the other's"
    assert os.listdir(tmp_path) == ["key"]


def test_what_a_killed_process_began_of_a_kept_folder_goes_and_what_is_under_way_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "NEW_S", -1)
    for name in ("killed", "under_way"):
        (tmp_path / f".key.{name}").mkdir()
        (tmp_path / f".key.{name}" / "lock").touch()
    with FileLock(tmp_path / ".key.under_way" / "lock"):
        files.kept_folder(tmp_path / "key", lambda made: made.mkdir())
    assert sorted(os.listdir(tmp_path)) == [".key.under_way", "key"]


def test_the_texts_beside_a_module_make_its_stages_stale_as_its_code_does():
    parts = fingerprint.of_stage("06_judge")
    assert {"lib/judge/rubric.py", "lib/judge/rubric.yaml", "lib/pipeline/architectures.yaml"} <= set(parts)
    assert {"lib/qat/compiled.py", "lib/qat/compiled.c"} <= set(fingerprint.of_stage("04_qat"))


def test_of_a_link_the_link_alone_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("x")
    for name in ("link", "folder"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    files.remove(tmp_path / "link")
    with files.whole_folder(tmp_path / "folder") as partial:
        partial.mkdir()
    assert not (tmp_path / "link").exists() and (tmp_path / "mine" / "kept").exists()
    assert not (tmp_path / "folder").is_symlink() and os.listdir(tmp_path / "folder") == []


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(RuntimeError, match="user id 4000000000 has no home folder: set HOME, or XDG_CACHE_HOME"):
        files.cache_dir()


def test_a_commit_is_recorded_of_an_own_checkout_only(monkeypatch, tmp_path):
    (tmp_path / "inside").mkdir()
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@n", "-C", tmp_path]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert len(machine._commit()["commit"]) == 40
    monkeypatch.setattr(machine, "ROOT", tmp_path / "inside")
    assert machine._commit() == {"commit": "", "dirty": False}


def test_a_damaged_memory_of_hashes_is_none(tmp_path):
    path, kept = tmp_path / "a", tmp_path / ".hashes.json"
    path.write_text("abc")
    cache = files.HashCache(kept)
    right = cache.sha256(path)
    cache.save()
    whole = kept.read_bytes()
    assert files.HashCache(kept).known
    for place in range(len(whole)):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert files.HashCache(kept).sha256(path) == right
    for text in ("[1]", "null", "[" * 10**5, '{"files": {}}', '{"/a": [[1, 2], "x"]}'):
        kept.write_text(text)
        assert files.HashCache(kept).sha256(path) == right
