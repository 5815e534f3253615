from lib.judge.verdicts import Store

KEY = ("q1", "judge", "a>b", "hash", 0)


def test_the_first_valid_verdict_is_kept_and_outlives_the_process(tmp_path):
    store = Store(tmp_path / "v.sqlite")
    assert store.get(KEY) is None
    store.put(KEY, 2, [{"score": 3}])
    store.put(KEY, 1, [{"score": 7}])
    store.record_call("judge", "valid", 100, 10, 0.1)
    store.close()
    again = Store(tmp_path / "v.sqlite")
    assert again.get(KEY) == [{"score": 3}]
    for other in (("q1", "judge", "b>a", "hash", 0), ("q1", "judge", "a>b", "other", 0), (*KEY[:4], 1)):
        assert again.get(other) is None
    assert (again.spent(), again.spent("judge"), again.spent("b")) == (0.1, 0.1, 0)
    again.close()
