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


def kept_positions(config, layers, scores=None):
    """What every KV head of every layer keeps of one prompt, [L][K] sorted positions.

    ``layers`` are PromptViews of one prompt without padding; ``scores`` [L][H] are the heads'.
    """
    prompt, kv_heads = layers[0].key.shape[2], layers[0].key.shape[1]
    if config.method == "fullkv" or prompt <= config.budget:
        return [[list(range(prompt)) for _ in range(kv_heads)] for _ in layers]
    if config.method == "random":
        generator = torch.Generator().manual_seed(config.seed)
        shape = len(layers), layers[0].query.shape[1]
        scores = torch.rand(shape, generator=generator, dtype=torch.float64).tolist()
    rule = globals().get(f"_{config.method}", _by_window)
    return rule(config, [_Prompt(view) for view in layers], scores)


class _Prompt:
    """One layer of one prompt as float64 arrays, and causal attention on it."""

    def __init__(self, view):
        self.view, self.query, self.key = view, view.query[0].double(), view.key[0].double()
        self.heads, (self.kv_heads, self.length, self.dim) = len(self.query), self.key.shape
        self.group = self.heads // self.kv_heads
        self.value = None if view.value is None else view.value[0].double()
        self.images = None if view.images is None else view.images[0].tolist()

    def attention(self, head, row):
        """What a query head's row looks at: float64 [row + 1]."""
        scores = self.key[head // self.group, : row + 1] @ self.query[head, row] / math.sqrt(self.dim)
        return (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()

    def rows(self, head, rows):
        """The same of several rows, zeros behind each: float64 [rows, N]."""
        found = torch.zeros(len(rows), self.length, dtype=torch.float64)
        for place, row in enumerate(rows):
            found[place, : row + 1] = self.attention(head, row)
        return found

    def of_group(self, kv_head, function):
        """Mean of a function over the query heads of a KV head."""
        found = [function(kv_head * self.group + place) for place in range(self.group)]
        return sum(found) / len(found)

    def everywhere(self, function):
        """[K][N] from a function of a KV head."""
        return [[float(x) for x in function(head)] for head in range(self.kv_heads)]

    def received(self):
        """Column sums of all rows, [K][N]."""
        everything = range(self.length)
        return self.everywhere(lambda k: self.of_group(k, lambda h: self.rows(h, everything).sum(0)))


def best(values, count, always):
    """Sorted positions: those always kept, and the best others up to the count, earlier first if equal."""
    others = [p for p in range(len(values)) if p not in always]
    others.sort(key=lambda p: (-values[p], p))
    return sorted([*always, *others[: max(count - len(always), 0)]])


def _selected(values, counts, always):
    return [best(row, count, set(always)) for row, count in zip(values, counts, strict=True)]


def _window_scores(config, prompt):
    """SnapKV's score [K][N], infinite in the window."""
    past = importance(
        prompt.view.query[0],
        prompt.view.key[0],
        config.window,
        config.kernel_size,
        config.pooling,
        config.gqa,
    )
    return [[*row, *[math.inf] * config.window] for row in past]


def _window_of(config, prompt):
    return range(max(prompt.length - config.window, 0), prompt.length)


def _by_window(config, layers, scores):
    kept = []
    for layer, prompt in enumerate(layers):
        values = _window_scores(config, prompt)
        counts = capacities(
            config.method,
            budget=config.budget,
            window=config.window,
            prompt=prompt.length,
            layers=len(layers),
            kv_heads=prompt.kv_heads,
            layer=layer,
            importances=[row[: -config.window] for row in values],
            beta=config.knobs.get("pyramid_beta"),
            floor=config.knobs.get("adakv_floor"),
            ratio=config.knobs.get("ratio"),
            scores=scores,
        )
        kept.append(_selected(values, counts, _window_of(config, prompt)))
    return kept


def _evenly(config, layers, values, always=()):
    """Every head its best within the budget; values and always: functions of a prompt."""
    return [
        _selected(values(prompt), [config.budget] * prompt.kv_heads, always(prompt) if always else ())
        for prompt in layers
    ]


def _streamingllm(config, layers, scores):
    prompt = layers[0].length
    recent = config.budget - config.sinks
    kept = [*range(config.sinks), *range(prompt - recent, prompt)]
    return [[kept] * one.kv_heads for one in layers]


def _tova(config, layers, scores):
    def values(prompt):
        mean = sum(prompt.attention(h, prompt.length - 1) for h in range(prompt.heads)) / prompt.heads
        return prompt.everywhere(lambda k: mean)

    return _evenly(config, layers, values, lambda p: [p.length - 1] if config.last_token == "keep" else [])


def _knorm(config, layers, scores):
    return _evenly(config, layers, lambda p: p.everywhere(lambda k: -p.key[k].square().sum(-1).sqrt()))


def _unit(vectors):
    return vectors / vectors.square().sum(-1, keepdim=True).sqrt()


def _keydiff(config, layers, scores):
    def values(prompt):
        return prompt.everywhere(lambda k: -(_unit(prompt.key[k]) @ _unit(_unit(prompt.key[k]).mean(0))))

    return _evenly(config, layers, values)


def _h2o(config, layers, scores):
    recent = config.budget // 2 if config.recent is None else config.recent
    return _evenly(config, layers, _Prompt.received, lambda p: range(p.length - recent, p.length))


def _observed_attention(config, layers, scores):
    def values(prompt):
        return [[x / (prompt.length - j) for j, x in enumerate(row)] for row in prompt.received()]

    return _evenly(config, layers, values)


def _lagkv(config, layers, scores):
    first, lag = config.sinks, config.lag
    scored = max((layers[0].length - first) // lag - 1, 0)
    end = first + scored * lag

    def spread(entries, part):
        here = entries[first + part * lag : first + (part + 1) * lag]
        after = entries[first + (part + 1) * lag : first + (part + 2) * lag]
        low, high = after.min(0).values, after.max(0).values
        return ((here - low) / (high - low)).std(-1).softmax(-1)

    def values(prompt):
        if not scored:
            return [list(range(prompt.length))] * prompt.kv_heads
        found = [[1.0] * prompt.length for _ in range(prompt.kv_heads)]
        for head in range(prompt.kv_heads):
            for part in range(scored):
                both = (spread(prompt.key[head], part) + spread(prompt.value[head], part)).tolist()
                if config.lag_ranks == "partition":
                    both = [sorted(both).index(x) for x in both]
                for place, value in enumerate(both):
                    found[head][first + part * lag + place] = value
        return found

    def always(prompt):
        last = max(end, prompt.length - config.budget + first)
        return [*range(first), *(range(last, prompt.length) if scored else ())]

    return _evenly(config, layers, values, always)


def _critical(config, layers, counts_of):
    kept = []
    for prompt in layers:
        values, weight = _window_scores(config, prompt), prompt.view.output_weight.double()
        counts, found = counts_of(prompt, values), []
        for head, (row, count) in enumerate(zip(values, counts, strict=True)):

            def norm(h, head=head, prompt=prompt, weight=weight):
                return (prompt.value[head] @ weight[:, h * prompt.dim : (h + 1) * prompt.dim].T).abs().sum(-1)

            size, first = prompt.of_group(head, norm).tolist(), best(row, count // 2, set())
            second = [(x + 1e-4) * size[p] for p, x in enumerate(row)]
            found.append(best(second, count, {*first, *_window_of(config, prompt)}))
        kept.append(found)
    return kept


def _criticalkv(config, layers, scores):
    return _critical(config, layers, lambda prompt, values: [config.budget] * prompt.kv_heads)


def _criticaladakv(config, layers, scores):
    def counts_of(prompt, values):
        floor, entries = max(1, int(0.2 * config.budget)), []
        for head, row in enumerate(values):
            safe = best(row, floor, set())
            entries += [(math.inf if p in safe else x, head) for p, x in enumerate(row)]
        entries.sort(key=lambda entry: -entry[0])
        winners = [head for _, head in entries[: config.budget * prompt.kv_heads]]
        return [winners.count(head) for head in range(prompt.kv_heads)]

    return _critical(config, layers, counts_of)


def _mixkv(config, layers, scores):
    def values(prompt):
        found, past = [], prompt.length - config.window
        for head, row in enumerate(_window_scores(config, prompt)):
            attention = torch.tensor(row[:past], dtype=torch.float64)
            unit, norm = _unit(prompt.key[head]), prompt.value[head, :past].square().sum(-1).sqrt()
            mean = unit.mean(0)
            others = -(unit[:past] @ mean)
            parts = [
                (others - others.min()) / (others.max() - others.min() + 1e-8),
                (norm - norm.min()) / (norm.max() - norm.min()),
            ]
            diversity, size = (x * attention.mean() / (x.mean() + 1e-8) for x in parts)
            pairs = unit @ unit.T
            share = (pairs.sum() - pairs.trace()) / (prompt.length * (prompt.length - 1))
            mixed = share * diversity + (1 - share) * (attention + size)
            found.append([*mixed.tolist(), *[math.inf] * config.window])
        return found

    return _evenly(config, layers, values, lambda prompt: _window_of(config, prompt))


def _headkv(config, layers, scores):
    total, kept = sum(map(sum, scores)), []
    powers = [[(x / total) ** config.headkv_temp for x in row] for row in scores]
    total, base = sum(map(sum, powers)), config.budget - config.window
    pool = base // config.headkv_beta
    for prompt, row in zip(layers, powers, strict=True):
        counts = []
        for head in range(prompt.kv_heads):
            share = sum(row[head * prompt.group : (head + 1) * prompt.group]) / total
            wanted = share * pool * len(layers) * prompt.kv_heads + base - pool
            counts.append(min(round_half_even(wanted) + config.window, prompt.length))
        kept.append(_selected(_window_scores(config, prompt), counts, _window_of(config, prompt)))
    return kept


def _filled(floor, weights, cap, total):
    """floor + level * weight up to the cap, the level found by halving, whole by largest remainders."""
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        full = sum(min(cap, floor + level * weight) for weight in weights)
        low, high = (level, high) if full < min(total, cap * len(weights)) else (low, level)
    shares = [min(cap, floor + low * weight) for weight in weights]
    counts = [math.floor(share + 1e-9) for share in shares]
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - shares[i], i))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _fovea(config, layers, scores):
    past, group = layers[0].length - config.window, layers[0].group
    sums = [[sum(row[k * group : (k + 1) * group]) for k in range(len(row) // group)] for row in scores]
    largest, flat = max(map(max, sums)), [x**config.fovea_power for row in sums for x in row]
    floor = config.window + int(config.fovea_ratio * (config.budget - config.window))
    counts = _filled(floor, flat, layers[0].length, config.budget * len(flat))
    kept = []
    for prompt, row in zip(layers, sums, strict=True):
        raw = importance(prompt.view.query[0], prompt.view.key[0], config.window, 1, "avg", config.gqa)
        values = []
        for head, attention in enumerate(raw):
            reach = [max(attention[max(p - config.fovea_reach + 1, 0) : p + 1]) for p in range(past)]
            unit = _unit(prompt.key[head])
            other = (1 - unit @ _unit(unit.mean(0)))[:past].tolist()
            visual = config.fovea_diversity * (row[head] >= config.fovea_visual * largest)
            means = sum(reach) / past, sum(other) / past
            mixed = [r / means[0] + visual * d / means[1] for r, d in zip(reach, other, strict=True)]
            values.append([*mixed, *[math.inf] * config.window])
        mine, counts = counts[: len(row)], counts[len(row) :]
        kept.append(_selected(values, mine, _window_of(config, prompt)))
    return kept


def _duoattention(config, layers, scores):
    heads = [
        (sum(scores[i][k * p.group : (k + 1) * p.group]), -i, -k)
        for i, p in enumerate(layers)
        for k in range(p.kv_heads)
    ]
    length, streaming = layers[0].length, config.sinks + config.window
    left = (config.budget - streaming) * len(heads)
    counts = dict.fromkeys(heads, streaming)
    for head in sorted(heads, reverse=True):
        counts[head] += min(left, length - streaming)
        left -= counts[head] - streaming
    always = [*range(config.sinks), *range(length - config.window, length)]
    return [
        [
            best(list(range(length)), count, set(always))
            for (_, layer, _), count in counts.items()
            if layer == -i
        ]
        for i in range(len(layers))
    ]


def _expected_attention(config, layers, scores):
    first = config.sinks

    def turn(vector, cos, sin):
        half = len(vector) // 2
        return torch.cat(
            [
                vector[:half] * cos[:half] - vector[half:] * sin[:half],
                vector[half:] * cos[half:] + vector[:half] * sin[half:],
            ]
        )

    def values(prompt):
        rotation = prompt.view.rotation
        cos, sin = (part[0].double() for part in (rotation.cos, rotation.sin))
        future = [part[0].double() for part in rotation.future(config.future)]
        matrix = torch.stack([turn(axis, *future) for axis in torch.eye(prompt.dim).double()], dim=1)

        def of_head(h):
            before = torch.stack(
                [turn(prompt.query[h, p], cos[p], -sin[p]) for p in range(first, prompt.length)]
            )
            mean = before.mean(0)
            spread = sum(torch.outer(q - mean, q - mean) for q in before) / len(before)
            mean, spread = matrix @ mean, matrix @ spread @ matrix.T
            keys = prompt.key[h // prompt.group, first:]
            logits = [k @ mean / prompt.dim**0.5 + k @ spread @ k / (2 * prompt.dim) for k in keys]
            return torch.stack(logits).softmax(0)

        norm = prompt.value.square().sum(-1).sqrt()
        return prompt.everywhere(
            lambda k: [*[math.inf] * first, *(prompt.of_group(k, of_head) * norm[k, first:]).tolist()]
        )

    return _evenly(config, layers, values, lambda prompt: range(first))


def _cake(config, layers, scores):
    preferences, values, length = [], [], layers[0].length
    past = length - config.window
    for prompt in layers:
        rows = [prompt.rows(h, range(past, length))[:, :past] for h in range(prompt.heads)]
        entropy = -sum(float((a * (a + 1e-10).log()).sum()) for a in rows)
        change = sum(float(a.var(0).sum()) for a in rows) if config.window > 1 else 0.0
        preferences.append(entropy ** (1 / config.cake_tau1) * change ** (1 / config.cake_tau2))
        found = []
        for head in range(prompt.kv_heads):
            mean = prompt.of_group(head, lambda h, rows=rows: rows[h].mean(0))
            if config.window > 1:
                mean = mean + config.cake_gamma * prompt.of_group(head, lambda h, rows=rows: rows[h].var(0))
            found.append([*pool(mean.tolist(), config.kernel_size, "avg"), *[math.inf] * config.window])
        values.append(found)
    if length <= config.budget + config.window:
        return [[list(range(length))] * layers[0].kv_heads for _ in layers]
    total, held = (config.budget - config.window) * len(layers), [past] * len(layers)
    for seen in range(1, len(layers) + 1):
        if not config.cascading and seen < len(layers):
            continue
        wanted = [int(p / sum(preferences[:seen]) * total) for p in preferences[:seen]]
        over = sum(w - min(w, past) for w in wanted)
        wanted = _dealt([min(w, past) for w in wanted], over, past)
        wanted = _dealt(wanted, total - sum(wanted), past)
        held[:seen] = [min(a, b, past) for a, b in zip(held, wanted, strict=False)]
    return [
        _selected(found, [count + config.window] * len(found), range(past, length))
        for found, count in zip(values, held, strict=True)
    ]


def _dealt(wanted, rest, cap):
    """Hand out (or take back) one by one, round and round, among the layers that were open at first."""
    places = [i for i, w in enumerate(wanted) if (w < cap if rest > 0 else w > 1)]
    for turn in range(abs(rest) if places else 0):
        wanted[places[turn % len(places)]] += 1 if rest > 0 else -1
    return wanted


def _vlcache(config, layers, scores):
    assert config.vlcache_heads
    assert config.vlcache_layers
    assert not config.vlcache_layer_recent
    length, density, values = layers[0].length, [], []
    images = [p for p, image in enumerate(layers[0].images) if image]
    first = min(images[-1] + 1, length - 1) if images else length - config.window
    share = config.budget / length
    for prompt in layers:
        rows = [prompt.rows(h, range(first, length)) for h in range(prompt.heads)]
        some = sum(float((a >= 0.01 * a.max(-1, keepdim=True).values).sum()) for a in rows)
        density.append(some / prompt.heads / sum(row + 1 for row in range(first, length)))
        sums = [one.sum(0) for one in rows]
        values.append(prompt.everywhere(lambda k, p=prompt, sums=sums: p.of_group(k, sums.__getitem__)))
    recent = max(1, int(0.1 * length * share))
    kept = []
    for found, one in zip(values, density, strict=True):
        part = min(max(one / sum(density) * 0.9 * share * len(layers), 0.009), 1.0)
        count = recent + max(1, int(part * length))
        kept.append(_selected(found, [count] * len(found), range(length - recent, length)))
    return kept


def _lookm(config, layers, scores):
    recent = config.budget // 2 if config.recent is None else config.recent

    def values(prompt):
        return [
            [x + (0 if prompt.images[p] else 2 * prompt.length) for p, x in enumerate(row)]
            for row in prompt.received()
        ]

    def always(prompt):
        text = [p for p in range(prompt.length) if not prompt.images[p]] if config.lookm_text == "all" else []
        return {*text, *range(prompt.length - recent, prompt.length)}

    return _evenly(config, layers, values, always)


def _kvzip(config, layers, scores):
    assert config.kvzip_level == "pair"
    length, images = layers[0].length, layers[0].images
    end = max((p + 1 for p, image in enumerate(images) if image), default=length)
    always = {*range(config.sinks), *range(end, length)}
    entries = [
        (float(prompt.view.received[layer, 0, head, p]), layer, head)
        for layer, prompt in enumerate(layers)
        for head in range(prompt.kv_heads)
        for p in range(length)
        if p not in always
    ]
    entries.sort(key=lambda entry: -entry[0])
    heads = len(layers) * layers[0].kv_heads
    winners = [entry[1:] for entry in entries[: max((config.budget - len(always)) * heads, 0)]]
    return [
        [
            best(
                prompt.view.received[layer, 0, head].tolist(),
                len(always) + winners.count((layer, head)),
                always,
            )
            for head in range(prompt.kv_heads)
        ]
        for layer, prompt in enumerate(layers)
    ]


def _oracle(config, layers, scores):
    kept = []
    for layer, prompt in enumerate(layers):
        rows = prompt.view.received[layer, 0].tolist()
        values = [pool(row, config.kernel_size, config.pooling) for row in rows]
        kept.append(_selected(values, [config.budget] * len(values), _window_of(config, prompt)))
    return kept


def _random_positions(config, layers, scores):
    kept = []
    for layer, prompt in enumerate(layers):
        values = []
        for head in range(prompt.kv_heads):
            seed = (config.seed * len(layers) + layer) * prompt.kv_heads + head
            values.append(torch.rand(prompt.length, generator=torch.Generator().manual_seed(seed)).tolist())
        kept.append(_selected(values, [config.budget] * len(values), _window_of(config, prompt)))
    return kept


def merged(key, value, kept):
    """LOOK-M's pivot merge of one head's entries [N, D], float64: what is stored at the kept positions."""
    came = {p: [p] for p in kept}
    for p in range(len(key)):
        if p not in came:
            cosine = [float(_unit(key[p].double()) @ _unit(key[q].double())) for q in kept]
            came[kept[cosine.index(max(cosine))]].append(p)

    def mean(entries, target, others):
        return sum((entries[p].double() + entries[target].double()) / 2 for p in others) / len(others)

    return [torch.stack([mean(entries, q, came[q]) for q in kept]) for entries in (key, value)]


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
