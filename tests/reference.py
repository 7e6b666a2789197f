"""The method written as loops over plain numbers: slow, independent of the package, easy to check by eye."""

from __future__ import annotations

import math

import torch


def importance(query, key, window, kernel_size, pooling, gqa):
    """[K][N - window] floats from query [H, N, D] and key [K, N, D]."""
    heads, length, dim = query.shape
    kv_heads = key.shape[0]
    group = heads // kv_heads
    result = []
    for kv_head in range(kv_heads):
        per_query_head = []
        for head in range(kv_head * group, (kv_head + 1) * group):
            mean = [0.0] * (length - window)
            for row in range(length - window, length):
                scores = [
                    float(query[head, row].double() @ key[kv_head, column].double()) / math.sqrt(dim)
                    for column in range(row + 1)
                ]
                top = max(scores)
                total = sum(math.exp(s - top) for s in scores)
                for column in range(length - window):
                    mean[column] += math.exp(scores[column] - top) / total / window
            per_query_head.append(mean)
        columns = list(zip(*per_query_head, strict=True))
        joined = [sum(c) / len(c) if gqa == "mean" else max(c) for c in columns]
        result.append(pool(joined, kernel_size, pooling))
    return result


def pool(values, kernel_size, pooling):
    """Stride-1 pooling with zero padding that counts in the average."""
    half = kernel_size // 2
    pooled = []
    for i in range(len(values)):
        inside = [values[j] for j in range(i - half, i + half + 1) if 0 <= j < len(values)]
        pooled.append(sum(inside) / kernel_size if pooling == "avg" else max(inside))
    return pooled


def round_half_even(number):
    """Round as IEEE does, with some tolerance for a half that is not quite one in binary."""
    whole = math.floor(number)
    rest = number - whole
    if abs(rest - 0.5) < 1e-9:
        return whole + whole % 2
    return whole + (rest > 0.5)


def capacities(method, *, budget, window, prompt, layers, kv_heads, layer, importances=None, **knobs):
    """Entries every KV head of ``layer`` keeps (surplus dropped), window included, clipped to the prompt."""
    if prompt <= budget or prompt <= window:
        return [prompt] * kv_heads
    base = budget - window
    if method == "snapkv":
        wanted = [budget] * kv_heads
    elif method == "pyramidkv":
        low = base // knobs["beta"]
        high = 2 * base - low
        if high >= prompt - window:
            high = prompt - window
            low = 2 * base - high
        step = (high - low) // (layers - 1)
        wanted = [high - layer * step + window] * kv_heads
    elif method == "adakv":
        wanted = adakv(importances, base, window, knobs["floor"])
    else:
        assert method in ("sparsemm", "random"), f"method {method} has no reference in loops"
        scores = knobs["scores"]  # [layers][query heads]
        group = len(scores[0]) // kv_heads
        total = sum(sum(row) for row in scores)
        uniform = int(knobs["ratio"] * base)
        wanted = []
        for head in range(kv_heads):
            share = sum(scores[layer][head * group + j] for j in range(group)) / total
            wanted.append(round_half_even(share * (base - uniform) * layers * kv_heads + uniform) + window)
    return [min(count, prompt) for count in wanted]


def adakv(importances, base, window, floor_share):
    """The top K * base of all heads' adjusted importances together, counted per head."""
    entries = []
    for head, values in enumerate(importances):
        ranked = sorted(values, reverse=True)
        factor = sum(ranked[:base]) / sum(ranked)
        entries += [(value * factor, head) for value in ranked]
    entries.sort(key=lambda entry: -entry[0])
    winners = [head for _, head in entries[: base * len(importances)]]
    floor = int(floor_share * base)
    counts = [winners.count(head) for head in range(len(importances))]
    return [round_half_even((1 - floor_share) * count + floor) + window for count in counts]


def kept(importances, counts, window, prompt):
    """[K] sorted positions: the most important ones, earlier first among equals, and the window."""
    result = []
    for values, count in zip(importances, counts, strict=True):
        order = sorted(range(len(values)), key=lambda p, values=values: (-values[p], p))
        result.append(sorted([*order[: max(count - window, 0)], *range(max(prompt - window, 0), prompt)]))
    return result


def kept_positions(config, layer, layers, query, key, scores=None):
    """What every KV head keeps of one prompt: query [H, N, D], key [K, N, D]; scores [L][H]."""
    kv_heads, prompt = key.shape[0], key.shape[1]
    if config.method == "fullkv" or prompt <= config.budget:
        return [list(range(prompt)) for _ in range(kv_heads)]
    if config.method == "streamingllm":
        recent = config.budget - config.sinks
        return [[*range(config.sinks), *range(prompt - recent, prompt)] for _ in range(kv_heads)]
    if config.method == "random":
        generator = torch.Generator().manual_seed(config.seed)
        scores = torch.rand(layers, query.shape[0], generator=generator, dtype=torch.float64).tolist()
    weights = importance(query, key, config.window, config.kernel_size, config.pooling, config.gqa)
    counts = capacities(
        config.method,
        budget=config.budget,
        window=config.window,
        prompt=prompt,
        layers=layers,
        kv_heads=kv_heads,
        layer=layer,
        importances=weights,
        beta=config.knobs.get("pyramid_beta"),
        floor=config.knobs.get("adakv_floor"),
        ratio=config.knobs.get("ratio"),
        scores=scores,
    )
    return kept(weights, counts, config.window, prompt)


def attend(query, keys, values, scaling):
    """Softmax attention of one query [D] over keys and values [T, D], in float64."""
    scores = [float(query.double() @ k.double()) * scaling for k in keys]
    top = max(scores)
    weights = [math.exp(s - top) for s in scores]
    total = sum(weights)
    output = torch.zeros(values.shape[1], dtype=torch.float64)
    for weight, value in zip(weights, values, strict=True):
        output += weight / total * value.double()
    return output
