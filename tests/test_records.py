"""Records survive the disk unchanged, in batches, and a failed write leaves nothing."""

import numpy as np
import pytest

from lib.dataset import records

RECORD = {
    "id": "s:train:0", "source": "s", "config": None, "split": "train", "revision": None, "row": 0, "row_id": "7", 
    "benchmark": None, "licence": "MIT", "instruction": "Q?\n\nA. one\nB. two", "reasoning": "", "output": "A",
    "options": ["one", "two"], "answer": "one", "letter": "A", "skill": None,
    "history": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
}  # fmt: skip


def test_round_trip_over_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "BATCH", 10)
    rows = [RECORD | {"row": number, "instruction": f"Frage {number} ä\u2028"} for number in range(25)]
    assert records.write(tmp_path / "pool.arrow", iter(rows)) == 25
    table = records.read(tmp_path / "pool.arrow")
    assert list(records.rows(table)) == rows and len(table) == 25
    keep = np.arange(25) % 7 == 3
    assert [r["row"] for r in records.rows(table, keep)] == [3, 10, 17, 24]
    assert list(records.rows(table, np.zeros(25, bool))) == []


def test_nothing_half_written_is_left(tmp_path):
    def rows():
        yield RECORD
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        records.write(tmp_path / "pool.arrow", rows())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_reads_as_no_record(tmp_path):
    assert records.write(tmp_path / "pool.arrow", []) == 0
    assert len(records.read(tmp_path / "pool.arrow")) == 0
