"""Sampled networks for sequences: patches, words, sound."""

from __future__ import annotations

from latmorph.device.builder import NetworkBuilder
from latmorph.device.draw import Draw


def transformer(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ViT: patches, attention, MLP; the fused and the split way of writing query, key and value."""
    heads, head = _heads(draw)
    width = heads * head
    patch = draw.one((16, 16, 14, 32))
    side = (
        draw.one((6, 7, 8, 14, 14, 14, 16, 24, 32)) if draw.chance(0.5) else int(draw.random.integers(3, 33))
    )
    batch = 1 if draw.chance(0.8) else draw.one((2, 4, 8)) * (1 if draw.reach < 16 else 4)
    while side > 3 and batch * _block_flops(side * side, width) > draw.a_block(limit):
        side -= 1
    net = NetworkBuilder((batch, 3, side * patch, side * patch), dtype)
    x = net.conv(-1, width, patch, patch, bias=True, padding=0)
    x = net.layout(x, "flatten", (batch, width, side * side), start_dim=2, end_dim=-1)
    x = net.transpose(x, 1, 2)
    marked = draw.chance(0.6)
    if marked:  # a token for the whole; without one, tokens stay columns of the picture, strided
        x = net.cat([net.layout(x, "slice", (batch, 1, width), dim=1, start=0, end=1, step=1), x], 1)
    tokens = net.shape(x)[1]
    x = net.parameter_binary("add", x, (1, tokens, width))
    for block in draw.blocks(4):
        if block and net.flops > limit:
            break
        y = net.linear(net.layer_norm(x), 3 * width)
        q, k, v = net.query_key_value(y, heads, copied=draw.chance(0.4))
        y = net.transpose(net.attention(q, k, v), 1, 2)
        shape = (batch, tokens, width)
        # Attention on the CPU returns tokens before heads in memory, so that merging heads is a view.
        y = net.layout(y, "reshape", shape, shape=shape)
        y = net.layout(net.linear(y, width), "dropout", shape, p=0.0, train=False)
        x = net.binary("add", x, y)
        y = net.linear(net.layer_norm(x), draw.width(width, 4 * width + 8))
        y = net.activation(y, draw.name(("gelu", "gelu", "gelu", "silu")), inplace=False)
        y = net.layout(net.linear(y, width), "dropout", shape, p=0.0, train=False)
        x = net.binary("add", x, y)
    x = net.layer_norm(x)
    net.linear(net.select(x, 1, 0) if marked else net.mean(x, (1,)), draw.one((10, 1000)))
    return net


def windows(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """Swin: attention written out, in windows that shift, with a learned bias for every distance."""
    window = draw.one((7, 7, 8, 4))
    across = draw.one((1, 2, 2, 4))
    side = window * across
    heads, head = draw.one((3, 4, 6, 12) if draw.deep else (2, 3, 4, 6)), draw.one((16, 32, 32))
    width = heads * head
    net = NetworkBuilder((1, 3, 4 * side, 4 * side), dtype)
    x = net.layer_norm(net.permute(net.conv(-1, width, 4, 4, bias=True, padding=0), (0, 2, 3, 1)))
    count, tokens = across**2, window**2
    for block in draw.blocks(4):
        if block and net.flops > limit:
            break
        y = net.layer_norm(x)
        shift = window // 2 if block % 2 and across > 1 else 0
        if shift:
            y = net.roll(y, (-shift, -shift), (1, 2))
        y = net.permute(net.reshape(y, (1, across, window, across, window, width)), (0, 1, 3, 2, 4, 5))
        y = net.reshape(y, (count, tokens, width), copies=across > 1)
        q, k, v = net.query_key_value(net.linear(y, 3 * width), heads)
        q = net.scalar("mul", q, head**-0.5)
        a = net.matmul(q, net.transpose(k, 2, 3))
        bias = net.contiguous(net.distance_bias((2 * window - 1) ** 2, heads, tokens))
        a = net.binary("add", a, net.layout(bias, "unsqueeze", (1, heads, tokens, tokens), dim=0))
        if shift:
            scores = net.reshape(a, (1, count, heads, tokens, tokens))
            scores = net.binary("add", scores, _apart(net, count, tokens, 2 * across - 1))
            a = net.reshape(scores, (count, heads, tokens, tokens))
        y = net.transpose(net.matmul(net.softmax(a), v), 1, 2)
        y = net.linear(net.reshape(y, (count, tokens, width), copies=True), width)
        y = net.permute(net.reshape(y, (1, across, across, window, window, width)), (0, 1, 3, 2, 4, 5))
        y = net.reshape(y, (1, side, side, width), copies=across > 1)
        if shift:
            y = net.roll(y, (shift, shift), (1, 2))
        x = net.binary("add", x, y)
        y = net.activation(net.linear(net.layer_norm(x), draw.width(width, 4 * width)), "gelu")
        x = net.binary("add", x, net.linear(y, width))
    if side % 2 == 0 and draw.chance(0.6):
        rows = [net.slice(x, 1, i, side, 2) for i in (0, 1)]
        x = net.cat([net.slice(row, 2, i, side, 2) for i in (0, 1) for row in rows], 3)
        x = net.linear(net.layer_norm(x), 2 * width, bias=False)
    net.linear(net.mean(x, (1, 2)), draw.one((10, 1000)))
    return net


def _apart(net: NetworkBuilder, count: int, tokens: int, split: int) -> int:
    """Minus 100 between the halves of the last ``split`` windows, which a shift brought together.

    Its exponential is a denormal number, and arithmetic with those is slow.
    """
    late = net.scalar("ge", net.create("arange", (count,), "int64", end=count), count - split)
    low = net.scalar("ge", net.create("arange", (tokens,), "int64", end=tokens), tokens // 2)
    late, low = (
        net.layout(late, "unsqueeze", (count, 1), dim=1),
        net.layout(low, "unsqueeze", (1, tokens), dim=0),
    )
    half = net.cast(net.binary("logical_and", late, low), net.dtype)
    rows = net.layout(half, "unsqueeze", (count, 1, tokens), dim=1)
    columns = net.layout(half, "unsqueeze", (count, tokens, 1), dim=2)
    mask = net.binary("sub", rows, columns)
    mask = net.masked_fill(mask, net.scalar("ne", mask, 0), -100.0)
    mask = net.masked_fill(mask, net.scalar("eq", mask, 0), 0.0)
    mask = net.layout(mask, "unsqueeze", (count, 1, tokens, tokens), dim=1)
    return net.layout(mask, "unsqueeze", (1, count, 1, tokens, tokens), dim=0)


def patches(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """MLP-Mixer, TNT, XCiT: patches as columns, mixing along either axis, sums over positions."""
    patch, side = draw.one((8, 16)), draw.one((7, 10, 14))
    net = NetworkBuilder((1, 3, patch * side, patch * side), dtype)
    x = net.transpose(net.im2col(-1, patch, patch, 0), 1, 2)
    width = draw.width(*((128, 768) if draw.deep else (32, 256)))
    x = net.linear(x, width)
    tokens = side * side
    for block in draw.blocks(3):
        if block and net.flops > limit:
            break
        if draw.chance(0.5):
            y = net.transpose(net.layer_norm(x), 1, 2)
            y = net.activation(net.linear(y, draw.width(32, 256)), "gelu")
            y = net.transpose(net.linear(y, tokens), 1, 2)
        else:
            y = net.layer_norm(x)
            a = net.softmax(net.scalar("mul", net.einsum("bnc,bnd->bcd", y, y), 1 / tokens))
            y = net.einsum("bnc,bcd->bnd", y, a)
        x = net.binary("add", x, y)
        y = net.activation(net.linear(net.layer_norm(x), draw.width(width, 4 * width)), "gelu")
        x = net.binary("add", x, net.parameter_binary("mul", net.linear(y, width), (width,)))
    net.linear(net.mean(x, (1,)), draw.one((10, 1000)))
    return net


def _heads(draw: Draw) -> tuple[int, int]:
    """Heads and the size of one: as designed, or any, as heads that lost channels have."""
    if draw.deep:
        return draw.one((3, 6, 6, 8, 12, 12, 16)), draw.one((32, 64, 64, 64, 64, 80))
    if draw.chance(0.5):
        return draw.one((2, 3, 4, 4, 6, 8, 12)), draw.one((32, 64, 64, 64, 48))
    return draw.one((1, 2, 3, 4, 5, 6, 8, 12)), round(draw.log_uniform(2, 96))


def _block_flops(length: int, width: int) -> int:
    return length * width * (24 * width + 4 * length)


def _sizes(draw: Draw, limit: float) -> tuple[int, int, int, int]:
    """Length, heads, size of a head and batch of a network of words: a block of it near the limit."""
    heads, head = _heads(draw)
    length = draw.one((8, 16, 32, 64, 128, 128, 256))
    while length > 4 and _block_flops(length, heads * head) > draw.a_block(limit):
        length //= 2
    batch = 1 if draw.chance(0.8) or draw.reach < 16 else draw.one((2, 4, 8))
    return length, heads, head, batch


def words(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """Llama, Qwen, Gemma: rotated positions, shared heads, root mean square norm, gated MLP."""
    length, heads, head, batch = _sizes(draw, limit)
    width = heads * head
    shared = draw.one([k for k in (1, 1, 2, 4) if heads % k == 0])
    fused, bias = draw.chance(0.5), draw.chance(0.3)
    attend = draw.name(("causal", "masked", "written"))
    net = NetworkBuilder((batch, length), dtype, "int64")
    x = net.embedding(-1, draw.one((1000, 4000, 8000)), width)
    mask = _causal_mask(net, length) if attend == "masked" else None

    def norm(source: int) -> int:
        if fused:
            return net.rms_norm(source)
        y = net.cast(source, "float32")
        mean = net.scalar("add", net.reduce(net.scalar("pow", y, 2), "mean", (-1,), True), 1e-6)
        y = net.cast(net.binary("mul", y, net.activation(mean, "rsqrt", inplace=False)), dtype)
        return net.parameter_binary("mul", y, (net.shape(source)[-1],))

    def split(source: int, count: int) -> int:
        y = net.layout(source, "view", (batch, length, count, head), size=(batch, length, count, head))
        return net.transpose(y, 1, 2)

    def rotated(source: int) -> int:
        table = (1, 1, length, head)
        first = net.slice(source, 3, 0, head // 2)
        second = net.slice(source, 3, head // 2, head)
        turned = net.cat([net.activation(second, "neg"), first], 3)
        y = net.parameter_binary("mul", source, table)
        return net.binary("add", y, net.parameter_binary("mul", turned, table))

    for block in draw.blocks(3):
        if block and net.flops > limit:
            break
        y = norm(x)
        q = rotated(split(net.linear(y, width, bias), heads))
        k = rotated(split(net.linear(y, width // shared, bias), heads // shared))
        v = split(net.linear(y, width // shared, bias), heads // shared)
        if shared > 1 and attend != "causal":
            k, v = (_repeated(net, s, shared) for s in (k, v))
        if attend == "written":
            a = net.scalar("mul", net.matmul(q, net.transpose(k, 2, 3)), head**-0.5)
            y = net.matmul(net.softmax(net.parameter_binary("add", a, (1, 1, length, length))), v)
            y = net.contiguous(net.transpose(y, 1, 2))
        else:
            y = net.transpose(net.attention(q, k, v, mask, attend == "causal"), 1, 2)
        x = net.binary("add", x, net.linear(net.reshape(y, (batch, length, width)), width, False))
        y = norm(x)
        inner = draw.width(width, 4 * width)
        gate = net.activation(net.linear(y, inner, False), draw.name(("silu", "silu", "gelu")), inplace=False)
        y = net.linear(net.binary("mul", gate, net.linear(y, inner, False)), width, False)
        x = net.binary("add", x, y)
        if block == 0 and draw.chance(0.4):  # a router, whose choice only a mixture of experts would read
            scores = net.reshape(net.softmax(net.linear(x, 8, False)), (batch * length, 8))
            net.topk(scores, 2)
    last = net.slice(norm(x), 1, length - 1, length)
    net.linear(last, draw.one((1000, 4000, 8000)), False)
    return net


def _causal_mask(net: NetworkBuilder, length: int) -> int:
    places = net.create("arange", (length,), "int64", end=length)
    rows = net.layout(places, "unsqueeze", (length, 1), dim=1)
    columns = net.layout(places, "unsqueeze", (1, length), dim=0)
    seen = net.binary("le", columns, rows)
    if net.dtype != "float32":
        return seen
    zeros = net.create("zeros", (length, length))
    return net.masked_fill(zeros, net.binary("gt", columns, rows), -1e9)


def _repeated(net: NetworkBuilder, x: int, times: int) -> int:
    """Every head of key or value, as often as heads of the query share it."""
    n, heads, length, head = net.shape(x)
    y = net.layout(x, "unsqueeze", (n, heads, 1, length, head), dim=2)
    wide = (n, heads, times, length, head)
    y = net.layout(y, "expand", wide, size=wide)
    return net.reshape(y, (n, heads * times, length, head), copies=True)


def sentences(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """BERT, RoBERTa, T5's encoder: attention over whole sentences, fused or written out.

    A quarter has the layers of GPT-2, whose weights lie the other way.
    """
    length, heads, head, batch = _sizes(draw, limit)
    width = heads * head
    net = NetworkBuilder((batch, length), dtype, "int64")
    x = net.embedding(-1, draw.one((1000, 4000, 8000)), width)
    if draw.chance(0.4):  # positions counted where there is no padding
        there = net.cast(net.scalar("ne", -1, 1), "int64")
        places = net.binary("mul", net.cumsum(there, 1), there)
        x = net.binary("add", x, net.embedding(places, 512, width))
    else:
        x = net.parameter_binary("add", x, (1, length, width))
    x = net.layer_norm(x)
    written = draw.chance(0.6)
    act = draw.name(("gelu", "gelu", "relu", "tanh"))
    turned = draw.chance(0.25)

    def dense(source: int, out: int) -> int:
        if not turned:
            return net.linear(source, out)
        flat = (batch * length, net.shape(source)[-1])
        shape = (batch, length, out)
        y = net.addmm(net.layout(source, "view", flat, size=flat), out)
        return net.layout(y, "view", shape, size=shape)

    for block in draw.blocks(3):
        if block and net.flops > limit:
            break
        q, k, v = (dense(x, width) for _ in range(3))
        shape = (batch, length, heads, head)
        q, k, v = (net.transpose(net.layout(s, "view", shape, size=shape), 1, 2) for s in (q, k, v))
        if written:
            a = net.scalar("div", net.matmul(q, net.transpose(k, 2, 3)), head**0.5)
            a = net.softmax(net.parameter_binary("add", a, (1, 1, 1, length)))
            y = net.matmul(net.layout(a, "dropout", net.shape(a), p=0.1, train=False), v)
            y = net.contiguous(net.transpose(y, 1, 2))
        else:
            y = net.transpose(net.attention(q, k, v), 1, 2)
        y = dense(net.reshape(y, (batch, length, width)), width)
        x = net.layer_norm(net.binary("add", net.layout(y, "dropout", net.shape(y), p=0.1, train=False), x))
        y = net.activation(dense(x, draw.width(width, 4 * width)), act, inplace=False)
        x = net.layer_norm(net.binary("add", dense(y, width), x))
    net.linear(net.activation(net.linear(net.select(x, 1, 0), width), "tanh", inplace=False), 2)
    return net


def sound(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """WaveNet, Conformer, EnCodec, wav2vec: convolutions over time, gated, dilated, depthwise."""
    length = draw.one((200, 400, 800, 1500, 3000))
    width = draw.width(16, 192)
    net = NetworkBuilder((1, draw.one((1, 40, 80)), length), dtype)
    x = net.activation(net.conv(-1, width, draw.one((3, 5, 7)), draw.one((1, 2)), bias=True), "gelu")
    style = draw.name(("gated", "depthwise", "coded", "normed"))
    for block in draw.blocks(5):
        if block and net.flops > limit / 2:
            break
        width, time = net.shape(x)[1:]
        if style == "gated":
            y = net.conv(x, 2 * width, 3, bias=True, dilation=2 ** (block % 5))
            a, b = net.chunk(y, 2, 1)
            y = net.binary("mul", net.activation(a, "tanh", False), net.activation(b, "sigmoid", False))
            x = net.binary("add", x, net.conv(y, width, 1, bias=True))
        elif style == "depthwise":
            y = net.glu(net.conv(x, 2 * width, 1, bias=True))
            y = net.conv(y, width, draw.one((9, 15, 31)), groups=width)
            y = net.conv(net.activation(net.batch_norm(y), "silu"), width, 1, bias=True)
            x = net.binary("add", x, y)
        elif style == "coded":
            y = net.activation(x, "elu", inplace=False)
            y = net.conv(net.pad(y, (2, 0), "reflect"), width // 2 + 1, 3, bias=True, padding=0)
            x = net.binary("add", x, net.conv(net.activation(y, "elu"), width, 1, bias=True))
            if time >= 100:
                x = net.conv(net.activation(x, "elu", False), min(2 * width, 256), 4, 2, bias=True, padding=1)
        else:
            y = net.conv(x, min(draw.width(width, 2 * width), 384), 3, 2 if time >= 100 else 1)
            y = net.activation(net.group_norm(y, 1) if draw.chance(0.5) else net.instance_norm(y), "gelu")
            x = net.activation(y, "leaky_relu") if draw.chance(0.3) else y
    if draw.chance(0.5):
        x = net.conv_transpose(x, max(4, net.shape(x)[1] // 2), 4, 2, 1)
    net.conv(x, draw.one((1, 32, 80)), draw.one((1, 7)), bias=True)
    return net


def recurrent(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """Tagging, forecasting, reading lines of text: LSTM and GRU layers over words, series or columns."""
    length, width = draw.one((5, 10, 20, 40, 60)), draw.width(16, 256)
    kind = draw.name(("lstm", "lstm", "gru"))
    both = draw.chance(0.4)
    if draw.chance(0.4):
        net = NetworkBuilder((1, length), dtype, "int64")
        x = net.embedding(-1, draw.one((1000, 4000)), width)
    elif draw.chance(0.5):
        net = NetworkBuilder((1, 1, 32, 4 * length), dtype)
        x = net.activation(net.conv(-1, draw.width(8, 48), 3, 2), "relu")
        x = net.permute(net.reduce(x, "mean", (2,)), (0, 2, 1))
    else:
        net = NetworkBuilder((1 if draw.chance(0.7) else 8, length, draw.one((1, 7, 13, 40))), dtype)
        x = net.linear(-1, width)
    for _ in range(2):
        hidden = draw.width(16, 256)
        n, time, features = net.shape(x)
        ways = 2 if both else 1
        cost = 8 * n * time * ways * hidden * (features + hidden)
        x = net.recurrent(x, kind, hidden, 2 if cost < limit and draw.chance(0.3) else 1, both)
        if net.flops > limit:
            break
    if draw.chance(0.5):
        x = net.select(x, 1, net.shape(x)[1] - 1)
    elif draw.chance(0.6):
        x = net.reshape(net.repeat(x, (1, 1, 2)), (*net.shape(x)[:-1], 2 * net.shape(x)[-1]))
    net.linear(x, draw.one((2, 40, 96)))
    return net
