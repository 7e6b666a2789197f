"""The Triton kernels against float64: on the GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsemm_eval.cache.ragged_store import RaggedStore
from sparsemm_eval.errors import ConfigError
from sparsemm_eval.methods.keep import Kept
from tests.kernels.ragged_pool import TOLERANCE, Pool, relative_error

ragged_op = pytest.importorskip(
    "sparsemm_eval.kernels.ragged_op", reason="Triton is not installed", exc_type=ImportError
)

from sparsemm_eval.cache.segment_store import SegmentArena  # noqa: E402 - imports Triton

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


def step(pool, query, key, value, work=None):
    where = *pool.place, *(work or pool.work()), pool.length
    return ragged_op.ragged_decode_step(query.to(DEVICE), key, value, *where, SCALING)


def check(pool, query, work=None):
    """One step against float64."""
    key, value = pool.new_entries()
    output = step(pool, query, key, value, work)
    assert output.dtype == pool.dtype
    assert output.shape == query.shape
    assert relative_error(output, pool.truth(query, SCALING)) < TOLERANCE[pool.dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("group", "dim"), [(1, 128), (4, 32), (6, 64), (7, 80), (8, 256)])
def test_equals_float64(group, dim, dtype):
    pool = Pool([0, 1, 130], dim, dtype, DEVICE, seed=group)
    check(pool, pool.query(group))


@settings(
    max_examples=60 if CUDA else 5,
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
        assert relative_error(output, pool.truth(query, SCALING)) < TOLERANCE[dtype]
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
        assert relative_error(output, pool.truth(query, SCALING)) < 1e-5
    assert pool.length.tolist() == [64, 64]
    assert int(pool.keys.isfinite().all(1).sum()) == 128


def test_number_of_spans_does_not_matter():
    pools = [Pool([190, 7], 64, torch.float32, DEVICE) for _ in range(2)]
    query, (key, value) = pools[0].query(4), pools[0].new_entries()
    few, many = (
        step(pool, query, key, value, pool.work(n)) for pool, n in zip(pools, (1, 1000), strict=True)
    )
    torch.testing.assert_close(few, many, rtol=1e-5, atol=1e-6)


def test_many_spans_per_segment():
    pool = Pool([64 * 70 + 5], 32, torch.float32, DEVICE)  # more than are joined in one step
    work = pool.work(100)
    assert int(work[1][0, 1]) > 64
    check(pool, pool.query(1), work)


def test_a_list_and_an_address_refilled_in_place_serve_another_prompt():
    """What a captured step needs."""
    first = Pool([70, 3], 32, torch.float32, DEVICE)
    second = Pool([1, 130], 32, torch.float32, DEVICE, seed=1)
    held = [*first.place, *first.work(), first.length]
    for mine, new in zip(held, [*second.place, *second.work(), second.length], strict=True):
        mine.copy_(new)
    query, (key, value) = second.query(4), second.new_entries()
    output = ragged_op.ragged_decode_step(query.to(DEVICE), key, value, *held, SCALING)
    assert relative_error(output, second.truth(query, SCALING)) < 1e-5


def test_what_is_not_a_number_is_not_hidden():
    pool = Pool([100, 70, 3], 32, torch.float32, DEVICE)
    pool.keys[pool.offset[1] + 66] = torch.nan
    pool.values[pool.offset[2]] = torch.nan
    query = pool.query(4)
    output = step(pool, query, *pool.new_entries())
    assert bool(output[1:].isnan().all())
    assert relative_error(output[:1], pool.truth(query, SCALING)[:1]) < 1e-5


@pytest.mark.parametrize("scale", [40.0, 400.0])
def test_large_scores_stay_finite(scale):
    pool = Pool([100, 2], 32, torch.float32, DEVICE, scale=scale)
    query = pool.query(4) * 5
    output = step(pool, query, *pool.new_entries())
    assert relative_error(output, pool.truth(query, SCALING)) < 1e-4


def test_equals_the_torch_implementation():
    pool = Pool([1, 33, 90, 64], 64, torch.float32, DEVICE)
    key, value = (torch.zeros(2, 2, 90, 64) for _ in range(2))
    for s, (keys, values) in enumerate(pool.segments):
        key[s // 2, s % 2, : len(keys)], value[s // 2, s % 2, : len(keys)] = keys, values
    store = RaggedStore(32)
    kept = Kept(torch.arange(90).expand(2, 2, 90).to(DEVICE), pool.length.view(2, 2), int(pool.length.sum()))
    store.fill(key.to(DEVICE), value.to(DEVICE), kept, 4)
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
    assert relative_error(step(pool, *strided), pool.truth(query, SCALING)) < 1e-5


def test_the_operator_keeps_its_promises():
    pool = Pool([5, 2], 32, torch.float32, DEVICE)
    arguments = (pool.query(1).to(DEVICE), *pool.new_entries(), *pool.place, *pool.work(), pool.length)
    torch.library.opcheck(ragged_op.ragged_decode_step, (*arguments, SCALING))


def test_compiles_as_one_graph_that_a_larger_pool_does_not_change():
    pool = Pool([5, 62], 32, torch.float32, DEVICE, room=3)
    held = [*pool.place, *pool.work(), pool.length]

    @torch.compile(fullgraph=True, backend="inductor" if CUDA else "aot_eager")
    def decode(query, key, value):
        return ragged_op.ragged_decode_step(query * 2, key, value, *held, SCALING) + 1

    for number in range(3):
        query, (key, value) = pool.query(1), pool.new_entries()
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            output = decode(query.to(DEVICE), key, value)
        assert relative_error(output - 1, pool.truth(query * 2, SCALING)) < 1e-5
        pool.keys, pool.values = (torch.cat([old, old[:9]]) for old in (pool.keys, pool.values))
        held[0].copy_(pool.place[0])
    assert pool.length.tolist() == [8, 65]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query.dtype", {"query": torch.zeros(2, 1, 32, dtype=torch.float64)}),
        ("head dimension", {"query": torch.zeros(2, 1, 288)}),
        ("pool", {"pool": torch.zeros(3, dtype=torch.int64)}),
        ("segments", {"segments": torch.zeros(2, 2, dtype=torch.int64).T[:, :1]}),
        ("items", {"items": torch.zeros(5, 3, dtype=torch.int32)}),
        ("ranges", {"ranges": torch.zeros(3, 2, dtype=torch.int32)}),
        ("length", {"length": torch.zeros(2, dtype=torch.int32)}),
        ("key", {"key": torch.zeros(3, 32)}),
    ],
)
def test_arguments_that_do_not_fit_are_named(name, change):
    pool = Pool([5, 2], 32, torch.float32, DEVICE)
    (place, segments), work = pool.place, pool.work()
    key, value = pool.new_entries()
    arguments = {
        "query": pool.query(1),
        "key": key,
        "value": value,
        "pool": place,
        "segments": segments,
        "items": work[0],
        "ranges": work[1],
        "length": pool.length,
    } | change
    arguments = {argument: tensor.to(DEVICE) for argument, tensor in arguments.items()}
    with pytest.raises(ConfigError, match=rf"^{name}="):
        ragged_op.ragged_decode_step(**arguments, scaling=SCALING)


@needs_gpu
def test_captured_graph_follows_growth_another_prompt_and_another_pool():
    pools = [Pool([300, 1, 62, 5000], 128, torch.bfloat16, DEVICE, seed=i) for i in range(2)]
    held = [*pools[0].place, *pools[0].work(), pools[0].length.clone()]
    query, key, value = (pools[0].random(*shape).to(DEVICE) for shape in ((4, 7, 128), (4, 128), (4, 128)))
    ragged_op.ragged_decode_step(query, key, value, *held, SCALING)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = ragged_op.ragged_decode_step(query, key, value, *held, SCALING)
    for pool in pools:
        for mine, new in zip(held, [*pool.place, *pool.work(), pool.length], strict=True):
            mine.copy_(new)
        for _ in range(5):
            fresh, (new_key, new_value) = pool.query(7), pool.new_entries()
            for mine, theirs in ((query, fresh), (key, new_key), (value, new_value)):
                mine.copy_(theirs)
            output.fill_(torch.nan)
            graph.replay()
            assert relative_error(output, pool.truth(fresh, SCALING)) < 1e-2
        assert held[-1].tolist() == [len(pair[0]) for pair in pool.segments]


@pytest.mark.parametrize(("counts", "room", "steps"), [([[1, 90], [33, 64]], 20, 30), ([[300, 5]], 4, 9)])
def test_the_store_appends_and_attends_as_the_torch_one_does(counts, room, steps):
    generator = torch.Generator().manual_seed(3)
    counts = torch.tensor(counts)
    key, value = (torch.randn(*counts.shape, 300, 32, generator=generator).to(DEVICE) for _ in range(2))
    mask = torch.rand(*counts.shape, 300, generator=generator).argsort(-1).argsort(-1) < counts[..., None]
    arena, store = SegmentArena(1), RaggedStore(32)
    order = mask.float().argsort(dim=-1, descending=True, stable=True).to(DEVICE)
    kept = Kept(order, counts.to(DEVICE), int(counts.sum()) + 2)
    arena.fill(0, key, value, kept, room)
    assert arena.stores[0].counts.equal(counts.flatten())
    store.fill(key, value, kept, room)
    assert kept.mask(300).cpu().equal(mask)
    for number in range(steps):
        query = torch.randn(len(counts), 8, 1, 32, generator=generator).to(DEVICE)
        token = [torch.randn(len(counts), 2, 1, 32, generator=generator).to(DEVICE) for _ in range(2)]
        if number == arena.room:
            arena.make_room(number + 7)
        ours, theirs = (one.attend(query, *token, SCALING) for one in (arena.stores[0], store))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert steps > room


def test_more_entries_than_were_announced_are_an_error_and_write_nothing_elsewhere():
    arena, key = SegmentArena(1), torch.ones(1, 2, 5, 16, device=DEVICE)
    order, count = torch.arange(5, device=DEVICE).expand(1, 2, 5), torch.tensor([[5, 5]], device=DEVICE)
    store = arena.stores[0]
    memory = torch.zeros(2, 20, 16, device=DEVICE)
    store.keys, store.values = memory[:, :11]  # with others' memory behind them
    with pytest.raises(ConfigError, match=r"allocate=10 .* at most 9 entries, in layer 0"):
        arena.fill(0, key, key, Kept(order, count, 9), 1)
    assert bool((memory[:, 11:] == 0).all())
    store.keys, store.values = memory.zero_()[:, :8]
    with pytest.raises(ConfigError, match=r"allocate=10 .* at most 6 entries"):
        arena.fill(0, key, key, Kept(order, count, 6), 1)
    assert bool((memory[:, 8:] == 0).all())
