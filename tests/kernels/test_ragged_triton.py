"""The Triton kernels against float64: on the GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._inductor.utils import run_and_get_code

from sparsemm_eval.cache.ragged_store import RaggedStore
from sparsemm_eval.errors import ConfigError
from tests.kernels.ragged_pool import TOLERANCE, Pool, relative_error

ragged_op = pytest.importorskip(
    "sparsemm_eval.kernels.ragged_op", reason="Triton is not installed", exc_type=ImportError
)

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SCALING = 0.21
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory that nobody wrote to reads as NaN."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def attention(pool, query, work=None):
    return ragged_op.ragged_decode_attention(
        query.to(DEVICE), pool.keys, pool.values, *(work or pool.work()), pool.length, SCALING
    )


def step(pool, query, key, value, work=None):
    return ragged_op.ragged_decode_step(
        query.to(DEVICE), key, value, pool.keys, pool.values, *(work or pool.work()), pool.length, SCALING
    )


def check(pool, query):
    output, lse = attention(pool, query)
    truth, true_lse = pool.truth(query, SCALING)
    assert output.dtype == pool.dtype
    assert output.shape == query.shape
    assert relative_error(output, truth) < TOLERANCE[pool.dtype]
    torch.testing.assert_close(lse.cpu().double(), true_lse, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("group", "dim"), [(1, 128), (4, 32), (6, 64), (7, 80), (8, 256)])
def test_equals_float64(group, dim, dtype):
    pool = Pool([0, 1, 130], dim, dtype, DEVICE, seed=group)
    check(pool, pool.query(group))


@settings(
    max_examples=60 if CUDA else 5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    counts=st.lists(st.integers(0, 2000 if CUDA else 200), min_size=1, max_size=12 if CUDA else 3),
    group=st.sampled_from([1, 4, 6, 7, 8]),
    dim=st.sampled_from([32, 64, 80, 96, 128, 256]),
    dtype=st.sampled_from(list(TOLERANCE)),
    seed=st.integers(0, 99),
)
def test_equals_float64_for_any_shape(counts, group, dim, dtype, seed):
    pool = Pool(counts, dim, dtype, DEVICE, seed=seed)
    check(pool, pool.query(group))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_growing_token_by_token(dtype):
    pool = Pool([0, 1, 62, 61], 32, dtype, DEVICE, room=8)  # 2 rows of 2 KV heads; 64 ends a span
    work = pool.work()
    for _ in range(4):
        query, (key, value) = pool.query(4), pool.new_entries()
        output = step(pool, query, key.view(2, 2, 1, 32), value.view(2, 2, 1, 32), work)
        assert relative_error(output, pool.truth(query, SCALING)[0]) < TOLERANCE[dtype]
        assert pool.length.tolist() == [len(keys) for keys, _ in pool.segments]
    for start, (keys, values) in zip(pool.offset.tolist(), pool.segments, strict=True):
        assert pool.keys[start : start + len(keys)].cpu().equal(keys)
        assert pool.values[start : start + len(keys)].cpu().equal(values)
    stored = int(pool.length.sum())
    assert int(pool.keys.isfinite().all(1).sum()) == int(pool.values.isfinite().all(1).sum()) == stored


def test_a_full_segment_is_neither_overrun_nor_counted():
    pool = Pool([64, 63], 32, torch.float32, DEVICE, room=0)
    for _ in range(2):
        query, (key, value) = pool.query(1), pool.new_entries()
        output = step(pool, query, key, value)
        assert relative_error(output, pool.truth(query, SCALING)[0]) < 1e-5
    assert pool.length.tolist() == [64, 64]
    assert int(pool.keys.isfinite().all(1).sum()) == 128


def test_attending_changes_nothing():
    pool = Pool([5, 70], 32, torch.float32, DEVICE)
    before = [tensor.clone() for tensor in (pool.keys, pool.values, pool.length)]
    first, second = (attention(pool, pool.query(1).fill_(0.5)) for _ in range(2))
    for old, new in zip(before, (pool.keys, pool.values, pool.length), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    assert first[0].equal(second[0])
    assert first[1].equal(second[1])


def test_number_of_spans_does_not_matter():
    pool = Pool([190, 7], 64, torch.float32, DEVICE)
    query = pool.query(4)
    few, many = (attention(pool, query, pool.work(programs=programs))[0] for programs in (1, 1000))
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-6)


def test_many_spans_per_segment():
    pool = Pool([64 * 17 + 5], 32, torch.float32, DEVICE)  # more than are joined in one step
    assert int(pool.work().ranges[0, 1]) > 16
    check(pool, pool.query(1))


def test_a_list_refilled_in_place_serves_another_prompt():
    first = Pool([70, 3], 32, torch.float32, DEVICE, slots=512)
    second = Pool([1, 130], 32, torch.float32, DEVICE, slots=512, seed=1)
    work = first.work()
    for held, new in zip(work, second.work(), strict=True):
        held.copy_(new)
    query = second.query(4)
    assert relative_error(attention(second, query, work)[0], second.truth(query, SCALING)[0]) < 1e-5


def test_what_is_not_a_number_is_not_hidden():
    pool = Pool([100, 70, 3], 32, torch.float32, DEVICE)
    pool.keys[pool.offset[1] + 66] = torch.nan
    pool.values[pool.offset[2]] = torch.nan
    query = pool.query(4)
    output, _ = attention(pool, query)
    assert bool(output[1:].isnan().all())
    assert relative_error(output[:1], pool.truth(query, SCALING)[0][:1]) < 1e-5


@pytest.mark.parametrize("scale", [40.0, 400.0])
def test_large_scores_stay_finite(scale):
    pool = Pool([100, 2], 32, torch.float32, DEVICE, scale=scale)
    query = pool.query(4) * 5
    output, _ = attention(pool, query)
    assert relative_error(output, pool.truth(query, SCALING)[0]) < 1e-4


def test_equals_the_torch_implementation():
    pool = Pool([1, 33, 90, 64], 64, torch.float32, DEVICE)
    key, value = (torch.zeros(2, 2, 90, 64) for _ in range(2))
    kept = torch.zeros(2, 2, 90, dtype=torch.bool)
    for s, (keys, values) in enumerate(pool.segments):
        key[s // 2, s % 2, : len(keys)], value[s // 2, s % 2, : len(keys)] = keys, values
        kept[s // 2, s % 2, : len(keys)] = True
    store = RaggedStore("torch", 32)
    store.fill(key.to(DEVICE), value.to(DEVICE), kept.to(DEVICE), kept.sum(-1), 4)
    query, (new_key, new_value) = pool.query(4), pool.new_entries()
    token = new_key.view(2, 2, 1, 64), new_value.view(2, 2, 1, 64)
    theirs = store.attend(query.view(2, 8, 1, 64).to(DEVICE), *token, SCALING).view(4, 4, 64)
    torch.testing.assert_close(step(pool, query, new_key, new_value), theirs, rtol=1e-4, atol=1e-5)


def test_strided_inputs():
    pool = Pool([20, 3], 32, torch.float32, DEVICE)
    query, (key, value) = pool.query(4), pool.new_entries()
    strided = [
        tensor.to(DEVICE).transpose(0, 1).contiguous().transpose(0, 1) for tensor in (query, key, value)
    ]
    assert not strided[0].is_contiguous()
    assert relative_error(step(pool, *strided), pool.truth(query, SCALING)[0]) < 1e-5


def test_operators_keep_their_promises():
    pool = Pool([5, 2], 32, torch.float32, DEVICE)
    pool.keys, pool.values = pool.keys.nan_to_num(), pool.values.nan_to_num()  # it compares with NaN
    query, work = pool.query(1).to(DEVICE), pool.work()
    key, value = pool.new_entries()
    read = (query, pool.keys, pool.values, *work, pool.length, SCALING)
    torch.library.opcheck(ragged_op.ragged_decode_attention, read)
    torch.library.opcheck(ragged_op.ragged_decode_step, (query, key, value, *read[1:]))


def test_compiles_as_one_graph():
    pool = Pool([5, 62], 32, torch.float32, DEVICE)
    work = pool.work()

    @torch.compile(fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    def decode(query, key, value, keys, values, length):
        output = ragged_op.ragged_decode_step(query * 2, key, value, keys, values, *work, length, SCALING)
        return output + 1

    for _ in range(3):
        query, (key, value) = pool.query(1), pool.new_entries()
        output = decode(query.to(DEVICE), key, value, pool.keys, pool.values, pool.length)
        assert relative_error(output - 1, pool.truth(query * 2, SCALING)[0]) < 1e-5
    assert pool.length.tolist() == [8, 65]


@pytest.mark.slow
def test_compiled_code_copies_no_pool():
    """Compilation turns writing in place into copies where it is not sure that nobody else looks."""
    pools = [Pool([5, 62], 32, torch.float32, DEVICE, seed=seed, slots=391) for seed in range(2)]
    works = [pool.work() for pool in pools]

    def decode(query, key, value):
        for pool, work in zip(pools, works, strict=True):
            query = step(pool, query + 1, key, value, work)
        return query

    query, (key, value) = pools[0].query(1).to(DEVICE), pools[0].new_entries()
    with torch.no_grad():
        _, code = run_and_get_code(torch.compile(decode, fullgraph=True), query, key, value)
    code = code[0].split("def call(")[1].split("def get_args")[0]
    assert code.count("ragged_decode_step.default(") == 2
    assert "391" in code  # the pools are the code's inputs,
    for line in code.splitlines():
        if "391" in line:  # and nothing else has their shape
            assert "empty" not in line
            assert "clone" not in line
            assert "copy" not in line
    assert [pool.length.tolist() for pool in pools] == [[6, 63], [6, 63]]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query.dtype", {"query": torch.zeros(2, 1, 32, dtype=torch.float64)}),
        ("head dimension", {"query": torch.zeros(2, 1, 288)}),
        ("keys", {"keys": torch.zeros(640, 32, dtype=torch.float16)}),
        ("values", {"values": torch.zeros(32, 640).T}),
        ("ranges", {"ranges": torch.zeros(3, 2, dtype=torch.int32)}),
        ("length", {"length": torch.zeros(2, dtype=torch.int32)}),
        ("key", {"key": torch.zeros(3, 32)}),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, change):
    pool = Pool([5, 2], 32, torch.float32, DEVICE, slots=640)
    work = pool.work()
    key, value = pool.new_entries()
    arguments = {
        "query": pool.query(1),
        "key": key,
        "value": value,
        "keys": pool.keys,
        "values": pool.values,
        "items": work.items,
        "ranges": work.ranges,
        "length": pool.length,
    } | change
    arguments = {argument: tensor.to(DEVICE) for argument, tensor in arguments.items()}
    with pytest.raises(ConfigError, match=rf"^{name}="):
        ragged_op.ragged_decode_step(**arguments, scaling=SCALING)


def test_agrees_with_varlen_attention():
    varlen = pytest.importorskip(
        "torch.nn.attention.varlen", reason="this torch has no variable-length attention"
    )
    pool = Pool([1, 33, 700, 64], 64, torch.bfloat16, DEVICE)
    packed = [torch.cat([pair[i] for pair in pool.segments]).unsqueeze(1).to(DEVICE) for i in range(2)]
    lengths = [len(keys) for keys, _ in pool.segments]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    rows = torch.arange(5, dtype=torch.int32, device=DEVICE)
    query = pool.query(1)
    try:
        theirs = varlen.varlen_attn(query.to(DEVICE), *packed, rows, bounds, 1, max(lengths), scale=SCALING)
    except (NotImplementedError, RuntimeError) as error:
        if CUDA:
            raise
        pytest.skip(f"variable-length attention does not run on a CPU: {str(error).splitlines()[0][:80]}")
    assert relative_error(attention(pool, query)[0], theirs.cpu().double()) < 1e-2


@needs_gpu
def test_captured_graph_follows_growth_and_another_prompt():
    pools = [Pool([300, 1, 62, 5000], 128, torch.bfloat16, DEVICE, seed=i, slots=8192) for i in range(2)]
    static = pools[0].work()
    query, key, value = (pools[0].random(*shape).to(DEVICE) for shape in ((4, 7, 128), (4, 128), (4, 128)))
    keys, values, length = (tensor.clone() for tensor in (pools[0].keys, pools[0].values, pools[0].length))
    ragged_op.ragged_decode_step(query, key, value, keys, values, *static, length, SCALING)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ragged_op.ragged_decode_step(query, key, value, keys, values, *static, length, SCALING)
    for pool in pools:
        for held, new in zip(static, pool.work(), strict=True):
            held.copy_(new)
        for mine, theirs in ((keys, pool.keys), (values, pool.values), (length, pool.length)):
            mine.copy_(theirs)
        for _ in range(5):
            fresh, (new_key, new_value) = pool.query(7), pool.new_entries()
            for mine, theirs in ((query, fresh), (key, new_key), (value, new_value)):
                mine.copy_(theirs)
            output.fill_(torch.nan)
            graph.replay()
            assert relative_error(output, pool.truth(fresh, SCALING)[0]) < 1e-2
        assert length.tolist() == [len(pair[0]) for pair in pool.segments]


@pytest.mark.parametrize(("counts", "room", "steps"), [([[1, 90], [33, 64]], 20, 70), ([[300, 5]], 4, 9)])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_store_appends_and_attends_as_the_torch_one_does(counts, room, steps, fixed):
    generator = torch.Generator().manual_seed(3)
    counts = torch.tensor(counts)
    key, value = (torch.randn(*counts.shape, 300, 32, generator=generator).to(DEVICE) for _ in range(2))
    kept = (
        torch.rand(*counts.shape, 300, generator=generator).argsort(-1).argsort(-1) < counts[..., None]
    ).to(DEVICE)
    stores = [RaggedStore(kernel, 32, fixed=fixed) for kernel in ("torch", "triton")]
    for store in stores:
        store.fill(key, value, kept, counts, room)
    for step in range(steps):
        query = torch.randn(len(counts), 8, 1, 32, generator=generator).to(DEVICE)
        token = [torch.randn(len(counts), 2, 1, 32, generator=generator).to(DEVICE) for _ in range(2)]
        for store in stores:
            if fixed:
                store.make_room(step + 1)
        ours, theirs = (store.attend(query, *token, SCALING) for store in stores)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
