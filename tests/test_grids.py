"""Every grid against ggml's own quantizer (ggml_quantize_chunk of the built library): no value may differ."""

import ctypes

import numpy as np
import pytest
import torch

from lib.pipeline import programs
from lib.qat import compiled, grids

GGML_TYPE = {  # enum ggml_type, and the C name of the function that reads the type back
    "f16": (1, "ggml_fp16_to_fp32_row"),
    "bf16": (30, "ggml_bf16_to_fp32_row"),
    "q4_0": (2, "dequantize_row_q4_0"),
    "q5_0": (6, "dequantize_row_q5_0"),
    "q5_1": (7, "dequantize_row_q5_1"),
    "q8_0": (8, "dequantize_row_q8_0"),
    "q2_k": (10, "dequantize_row_q2_K"),
    "q3_k": (11, "dequantize_row_q3_K"),
    "q4_k": (12, "dequantize_row_q4_K"),
    "q5_k": (13, "dequantize_row_q5_K"),
    "q6_k": (14, "dequantize_row_q6_K"),
    "mxfp4": (39, "dequantize_row_mxfp4"),
}
ROWS, COLS = 32, 1024


def normal(seed):
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(seed))


def uniform(seed, shape=(ROWS, COLS)):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def integers(seed, low, high):
    return torch.randint(low, high, (ROWS, COLS), generator=torch.Generator().manual_seed(seed)).float()


WEIGHTS = {
    "gaussian": lambda: normal(0) * 0.02,
    "gaussian, bfloat16": lambda: (normal(1) * 0.02).bfloat16().float(),
    "heavy tails": lambda: normal(2) * torch.exp(2 * normal(3)),
    "groups of unlike size": lambda: normal(4) * torch.exp(3 * normal(5)[:, ::32]).repeat_interleave(32, 1),
    "far from zero": lambda: normal(6) * 0.01 + torch.tensor([1.0, -1.0])[torch.arange(ROWS) % 2, None],
    "almost constant": lambda: normal(7) * 1e-4 - 1000,
    "constant": lambda: torch.linspace(-3, 3, ROWS)[:, None].expand(ROWS, COLS),
    "zero": lambda: torch.zeros(ROWS, COLS),
    "mostly zero": lambda: normal(8) * (uniform(9) < 0.02),
    "denormal": lambda: normal(10) * 1e-40,
    "from 1e-1 down to 1e-44": lambda: normal(11) * 10.0 ** -torch.linspace(1, 44, ROWS)[:, None],
    "fp16 scales that are denormal": lambda: normal(12) * 10 ** (-4 - 4 * uniform(13)),
    "huge": lambda: normal(14) * 1e4,
    "from 1e4 up to 1e37": lambda: normal(15) * 10.0 ** torch.linspace(4, 37, ROWS)[:, None],
    "ties of the largest": lambda: integers(16, -4, 5) / 4,
    "halves, where rounding ties": lambda: integers(17, -254, 255) / 2,
    "just below powers of two": lambda: torch.nextafter(2.0 ** integers(18, -20, 20), torch.tensor(0.0)),
}


@pytest.fixture(scope="module")
def reference():
    library = ctypes.CDLL(str(programs.toolchain().ggml_base))
    library.ggml_row_size.restype = library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


@pytest.fixture
def use_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def in_torch(w, name):
    return grids.by_torch(w.reshape(-1, grids.GRIDS[name][0]), name).view(w.shape)


def quantized_by_ggml(library, w, name):
    number, reader = GGML_TYPE[name]
    source = w.float().contiguous().numpy()
    rows, cols = (ctypes.c_int64(n) for n in source.shape)
    stored = (ctypes.c_uint8 * (library.ggml_row_size(number, cols) * len(source)))()
    zero, data = ctypes.c_int64(0), source.ctypes.data_as(ctypes.c_void_p)
    library.ggml_quantize_chunk(number, data, stored, zero, rows, cols, None)
    out = np.empty_like(source)
    getattr(library, reader)(stored, out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(source.size))
    return torch.from_numpy(out)


def differing(ours, theirs):
    """Number of values that differ; not-a-number equals itself (scales beyond fp16 are infinite in the file too)."""
    return int((~((ours == theirs) | (ours.isnan() & theirs.isnan()))).sum())


@pytest.mark.parametrize("name", GGML_TYPE)
def test_no_value_differs_from_ggml(reference, name):
    found = {}
    for case, make in WEIGHTS.items():
        w = make()
        found[case] = differing(in_torch(w, name), quantized_by_ggml(reference, w, name))
    assert found == dict.fromkeys(WEIGHTS, 0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", compiled.TYPES)
def test_no_value_differs_between_our_c_and_torch(name, threads, use_threads):
    use_threads(threads)
    rows = torch.cat([make() for make in WEIGHTS.values()])[:-1]  # 543 rows of four blocks: five chunks, the last odd
    found = grids.fake_quantize(rows, name)
    assert found.shape == rows.shape
    assert differing(found, in_torch(rows, name)) == 0
    assert differing(grids.fake_quantize(rows.bfloat16(), name), in_torch(rows.bfloat16().float(), name)) == 0
    assert differing(grids.fake_quantize(rows[:1, :256], name), in_torch(rows[:1, :256], name)) == 0


@pytest.mark.parametrize("name", compiled.TYPES)
def test_no_value_differs_between_our_c_and_ggml(reference, name):
    assert compiled.library() is not None, "compiled.c does not compile here: is there a C compiler?"
    found = {}
    for case, make in WEIGHTS.items():
        ours = compiled.fake_quantize(make().float().reshape(-1, 256).contiguous(), name, grids.CPU_CHUNK)
        found[case] = differing(ours.view(ROWS, COLS), quantized_by_ggml(reference, make(), name))
    assert found == dict.fromkeys(WEIGHTS, 0)


def test_without_a_compiler_torch_computes_the_same(monkeypatch):
    w = WEIGHTS["heavy tails"]()
    in_c = grids.fake_quantize(w, "q4_k")
    monkeypatch.setattr(compiled, "library", lambda: None)
    assert torch.equal(grids.fake_quantize(w, "q4_k"), in_c)


def test_a_compiler_that_fails_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/bin/false")
    assert compiled.library.__wrapped__() is None


def test_flushing_denormals_changes_no_value(reference):
    w = WEIGHTS["fp16 scales that are denormal"]()
    torch.set_flush_denormal(True)
    try:
        ours = {name: (in_torch(w, name), grids.fake_quantize(w, name)) for name in ("q4_0", "q4_k", "q6_k")}
    finally:
        torch.set_flush_denormal(False)
    whole = {name: quantized_by_ggml(reference, w, name) for name in ours}
    assert {
        name: [differing(value, whole[name]) for value in values] for name, values in ours.items()
    } == dict.fromkeys(ours, [0, 0])


def test_chunks_do_not_show():
    w = normal(20).repeat(1 + 2 * grids.CPU_CHUNK // (ROWS * COLS), 1)
    once = in_torch(w[:ROWS], "q4_k")
    assert torch.equal(in_torch(w, "q4_k"), once.repeat(len(w) // ROWS, 1))


def test_q4_0_by_hand():
    row = torch.zeros(32)
    row[:4] = torch.tensor([-8.0, 7.4, 7.6, 0.5])
    # scale -8 / -8 = 1; q = trunc(x + 8.5): 0, 15, min(15, 16), 9
    assert grids.fake_quantize(row, "Q4_0")[:5].tolist() == [-8.0, 7.0, 7.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "wanted, cols, stored",
    [
        ("q4_k", 512, "q4_k"),
        ("q4_K", 2880, "q5_0"),
        ("q5_k", 2880, "q5_1"),
        ("q6_k", 192, "q8_0"),
        ("q2_k", 96, "q4_0"),
        ("q3_k", 2880, "q4_0"),
        ("q4_k", 100, "f16"),
        ("q4_0", 100, "f16"),
        ("q8_0", 2880, "q8_0"),
    ],
)
def test_rows_that_do_not_divide_fall_back_as_in_llama_cpp(wanted, cols, stored):
    assert grids.fallback(wanted, cols) == stored


@pytest.mark.parametrize(
    ("cols", "type", "said"),
    [(2880, "q4_k", "2880 .* q4_k blocks of 256.*as q5_0"), (32, "int4", "'int4'.*q4_0")],
)
def test_what_has_no_grid_is_refused_with_the_types_to_use(cols, type, said):
    with pytest.raises(ValueError, match=said):
        grids.fake_quantize(torch.zeros(2, cols), type)


def test_straight_through_rounds_forward_and_passes_the_gradient():
    w = (normal(21) * 0.02).requires_grad_()
    out = grids.straight_through(w, grids.fake_quantize(w.bfloat16(), "q4_0"))
    assert torch.equal(out, grids.fake_quantize(w.bfloat16(), "q4_0"))
    gradient = normal(22)
    out.backward(gradient)
    assert torch.equal(w.grad, gradient)


def test_the_hash_tells_values_apart_and_zero_has_no_sign():
    row = torch.tensor([0.0, 1.0, -2.5])
    assert grids.sha256(row) == grids.sha256(np.array([-0.0, 1.0, -2.5], np.float32))
    assert grids.sha256(row) != grids.sha256(torch.tensor([0.0, 1.0, -2.4999998]))
