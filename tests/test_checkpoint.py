"""Which checkpoint is resumed: the newest whose manifest, written last, matches key and bytes."""

from types import SimpleNamespace

from lib import checkpoint


def saved(folder, step, key="k"):
    path = folder / f"checkpoint-{step}"
    (path / "nested").mkdir(parents=True)
    (path / "weights.bin").write_bytes(bytes([step]))
    (path / "nested" / "state.json").write_text("{}")
    args, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(global_step=step)
    checkpoint.Manifests(key).on_save(args, state, None)
    return path


def test_the_newest_verified_one_wins_and_the_rest_is_removed(tmp_path):
    old, good = saved(tmp_path, 5), saved(tmp_path, 10)
    torn = saved(tmp_path, 20)
    (torn / "weights.bin").write_bytes(b"torn")
    half = tmp_path / "checkpoint-30"
    half.mkdir()
    (half / "weights.bin").write_bytes(b"half written, killed before its manifest")
    assert checkpoint.newest(tmp_path, "k") == str(good)
    assert old.exists() and not torn.exists() and not half.exists()


def test_a_checkpoint_of_other_values_is_not_resumed(tmp_path):
    path = saved(tmp_path, 10, key="another learning rate")
    assert checkpoint.newest(tmp_path, "k") is None and not path.exists()


def test_a_file_too_many_or_a_broken_manifest_is_not_trusted(tmp_path):
    extra, broken = saved(tmp_path, 1), saved(tmp_path, 2)
    (extra / "more.bin").write_bytes(b"")
    (broken / checkpoint.MANIFEST).write_text("{")
    assert checkpoint.newest(tmp_path, "k") is None


def test_no_folder_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "none", "k") is None
