"""Sampled networks for images: random relatives of real families."""

from __future__ import annotations

from latmorph.device.builder import NetworkBuilder
from latmorph.device.draw import SLOW_FLOPS, Draw, up_to


def norm_act(net: NetworkBuilder, x: int, act: str) -> int:
    """Batch norm and an activation in place."""
    return net.activation(net.batch_norm(x), act)


ACTIVATIONS = ("relu", "relu", "relu", "relu", "silu", "gelu", "leaky_relu", "hardswish")
"""Those of residual and plain networks, in their shares."""


def residual(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ResNet, ResNeXt, RegNet: basic and bottleneck blocks, sometimes with the stem before them."""
    bottleneck = draw.chance(0.6)
    widest = 2048 if bottleneck else 640
    act = draw.name(ACTIVATIONS)
    if draw.whole(0.25):
        batch, size = 1, draw.image((224, 160, 128))
        if draw.chance(0.2):
            batch, size = (8, 64) if draw.reach < 16 else (32, 224)
        net = NetworkBuilder((batch, 3, size, size), dtype)
        x = norm_act(net, net.conv(-1, draw.width(16, 96), draw.one((7, 7, 3)), 2), act)
        x = net.pool(x, "max_pool2d", 3, 2, 1)
    else:
        batch, size, width = draw.stage()
        net = NetworkBuilder((batch, min(width, widest), size, size), dtype)
        x = net.activation(-1, act, inplace=False)
    grouped = bottleneck and draw.chance(0.6)
    fixed_groups = draw.chance(0.4)
    kernel, dilation = draw.one((3, 3, 3, 3, 3, 3, 5, 7)), draw.one((1,) * 11 + (2,))
    group = draw.one((4, 4, 8, 8, 16, 16, 24, 32, 40, 48, 64, 112))
    for block in draw.blocks(6):
        if block and net.flops > limit:
            break
        width = net.shape(x)[1]
        expands = bottleneck and block == 0
        changes = draw.begins_stage(0.4, net.shape(x)[2]) or expands
        stride = draw.stride(changes, net.shape(x)[2])
        out = draw.wider(2 * width if expands and draw.deep else width, widest) if changes else width
        y = x
        if bottleneck:
            inner = draw.width(max(8, out // 6), max(16, out // 2))
            groups = 1
            if grouped and fixed_groups:
                groups = draw.one((2, 4, 8, 16, 32, 32))
                inner = max(1, inner // groups) * groups
            elif grouped:  # RegNet fixes the width of a group instead of their number
                groups = max(1, round(inner / group))
                inner = groups * group
            y = norm_act(net, net.conv(y, inner, 1), act)
            y = norm_act(net, net.conv(y, inner, kernel, stride, groups, dilation=dilation), act)
            y = net.batch_norm(net.conv(y, out, 1))
        else:
            inner = draw.width(max(8, out // 2), out + 8)
            y = norm_act(net, net.conv(y, inner, kernel, stride, dilation=dilation), act)
            y = net.batch_norm(net.conv(y, out, 3))
        if changes or stride > 1:
            x = net.batch_norm(net.conv(x, out, 1, stride))
        x = net.activation(net.binary("add", y, x, inplace=True), act)
    return head(net, draw, x)


def head(net: NetworkBuilder, draw: Draw, x: int) -> NetworkBuilder:
    """Half of the time, the mean over space and a linear layer.

    MobileNetV3 and GhostNet widen the mean before, by a linear layer or a convolution of one pixel.
    """
    if draw.chance(0.5):
        classes = draw.one((10, 100, 1000, 1000))
        widened = draw.name(("", "", "", "", "linear", "conv"))
        if widened == "conv":
            y = net.conv(net.global_pool(x), draw.width(256, 4096), 1, bias=True)
            pooled = net.flatten(net.activation(y, "hardswish"))
        else:
            pooled = net.mean(x, (2, 3)) if draw.chance(0.4) else net.flatten(net.global_pool(x))
        if widened == "linear":
            pooled = net.activation(net.linear(pooled, draw.width(256, 4096)), "hardswish")
        net.linear(pooled, classes)
    return net


def mobile(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """MobileNet, EfficientNet, MixNet, Xception: inverted residuals, some with gates, or separable ones."""
    act = draw.name(("hardtanh", "hardtanh", "hardswish", "silu", "relu"))
    separable, mixed = draw.chance(0.25), draw.chance(0.15)
    if draw.whole(0.45):
        net = NetworkBuilder((1, 3, *[draw.image((256, 224, 160, 96))] * 2), dtype)
        x = norm_act(net, net.conv(-1, draw.width(8, 48), 3, 2), act)
        if draw.chance(0.5):
            x = norm_act(net, net.conv(x, net.shape(x)[1], 3, 1, net.shape(x)[1]), act)
            x = net.batch_norm(net.conv(x, draw.width(8, 32), 1))
    else:
        batch, size, width = draw.stage()
        net = NetworkBuilder((batch, width if separable else max(8, width // 3), size, size), dtype)
        x = net.activation(-1, "relu", inplace=False)
    excite, by_mean = draw.chance(0.3), draw.chance(0.5)
    for block in draw.blocks(8):
        if block and net.flops > limit / 2:
            break
        width = net.shape(x)[1]
        changes = draw.begins_stage(0.4, net.shape(x)[2])
        stride = draw.stride(changes, net.shape(x)[2])
        if separable:
            x = norm_act(net, net.conv(x, width, draw.one((3, 3, 3, 5)), stride, width), act)
            x = norm_act(net, net.conv(x, draw.wider(width, 4096) if changes else width, 1), act)
            continue
        inner = width * draw.one((3, 4, 6, 6)) if draw.chance(0.6) else draw.width(2 * width, 7 * width)
        out = draw.wider(width, 640) if changes else width
        y = norm_act(net, net.conv(x, inner, 1), act)
        if mixed:
            y = norm_act(net, _mixed(net, draw, y, stride), act)
        else:
            y = norm_act(net, net.conv(y, inner, draw.one((3, 3, 3, 3, 5, 5, 7)), stride, inner), act)
        if excite:
            s = net.reduce(y, "mean", (2, 3), True) if by_mean else net.global_pool(y)
            s = net.activation(net.conv(s, max(4, inner // draw.one((4, 16, 24))), 1, bias=True), act)
            s = net.conv(s, inner, 1, bias=True)
            gate = "hardsigmoid" if act == "hardswish" else "sigmoid"
            s = net.activation(s, gate, inplace=False)
            y = net.binary("mul", y, s) if by_mean else net.binary("mul", s, y)
        y = net.batch_norm(net.conv(y, out, 1))
        x = y if changes else net.binary("add", x, y)
    if draw.chance(0.4):
        x = norm_act(net, net.conv(x, draw.width(320, 4096), 1), act)
    return head(net, draw, x)


def _mixed(net: NetworkBuilder, draw: Draw, x: int, stride: int) -> int:
    """MixNet's depthwise convolution: kernels of several sizes, each over a part of the channels."""
    kernels = (3, 5, 7, 9, 11)[: draw.one((2, 3, 4, 5))]
    part = net.shape(x)[1] // len(kernels)
    sizes = (net.shape(x)[1] - part * (len(kernels) - 1), *[part] * (len(kernels) - 1))
    parts = zip(net.split(x, sizes, 1), sizes, kernels, strict=True)
    return net.cat([net.conv(y, size, kernel, stride, size) for y, size, kernel in parts])


def plain(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """VGG, AlexNet: plain wide convolutions with bias, large resolutions, large linear layers."""
    limit = draw.a_block(limit)
    act = draw.name(ACTIVATIONS)
    if draw.whole(0.35):
        net = NetworkBuilder((1, 3, *[draw.image((224, 224, 160, 112, 64))] * 2), dtype)
        x = -1
        width = draw.width(24, 72)
    else:
        size = draw.side((224, 112, 112, 56, 56, 28, 28, 14, 14, 32, 16, 7, 4))
        width = draw.width(16, up_to(size, ((9, 1280), (48, 544), (70, 288), (130, 144), (224, 72))))
        batch = draw.one((1, 1, 1, 1, 4)) if size <= 32 else 1
        net = NetworkBuilder((batch, width, size, size), dtype)
        x = net.activation(-1, act, inplace=False)
    normed, bias = draw.chance(0.2), draw.chance(0.85)
    for layer in range(14 if draw.deep else 6):
        if layer and net.flops > limit:
            break
        size = net.shape(x)[2]
        halves = draw.chance(0.8 if size > 56 else 0.5) and draw.halved(size)
        stride = 2 if halves and draw.chance(0.5) else 1
        kernel = draw.one((3, 3, 3, 3, 5, 7)) if net.shape(x)[1] < 128 else draw.one((3,) * 9 + (5,))
        dilation = 2 if stride == 1 and draw.chance(0.1) else 1
        x = net.conv(x, width, kernel, stride, bias=bias, dilation=dilation)
        x = net.activation(net.batch_norm(x) if normed else x, act)
        if halves:
            x = x if stride > 1 else net.pool(x, "max_pool2d", 2, 2)
            width = draw.wider(width, 544)
    if draw.chance(0.8 if draw.deep else 0.4):
        x = net.flatten(net.global_pool(x, draw.one((6, 7, 7) if draw.deep else (1, 2, 4, 7))))
        x = net.activation(net.linear(x, draw.width(1024 if draw.deep else 256, 4352)), act)
        x = net.layout(x, "dropout", net.shape(x), p=0.5, train=False)
        x = net.activation(net.linear(x, draw.width(256, 4352)), act)
        net.linear(x, draw.one((10, 1000)))
    return net


def branches(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """Inception: parallel branches, long and flat kernels, concatenation; now and then DenseNet."""
    batch, size, width = draw.stage()
    net = NetworkBuilder((batch, width, size, size), dtype)
    x = net.activation(-1, "relu", inplace=False)
    dense = draw.chance(0.25)
    wide = draw.one((5, 7))

    def affordable(source: int) -> bool:
        """Whether a 3x3 convolution of all that the branches together wrote is."""
        width, size = net.shape(source)[1:3]
        return 18 * batch * (size * width) ** 2 <= 4 * draw.reach * SLOW_FLOPS

    for block in draw.blocks(5):
        if block and (net.flops > limit or not affordable(x)):
            break
        width = net.shape(x)[1]

        def unit(source: int, out: int, kernel: int | tuple[int, int] = 1) -> int:
            return norm_act(net, net.conv(source, out, kernel), "relu")

        if dense:
            y = net.activation(net.batch_norm(x), "relu")
            y = unit(y, draw.width(64, 160))
            x = net.cat([x, net.conv(y, draw.width(12, 64), 3)])
            continue
        narrow = min(max(8, width // 8), 160)
        branches = [unit(x, draw.width(narrow, 384)), unit(x, draw.width(narrow, 256))]
        branches[1] = unit(branches[1], draw.width(narrow, 384), 3)
        if draw.chance(0.7):
            y = unit(x, draw.width(narrow, 192))
            for kernel in ((1, wide), (wide, 1)) if draw.chance(0.6) else ((3, 3), (3, 3)):
                y = unit(y, draw.width(narrow, 224), kernel)
            branches.append(y)
        if draw.chance(0.8):
            y = net.pool(x, draw.name(("avg_pool2d", "max_pool2d")), 3, 1, 1)
            branches.append(unit(y, draw.width(narrow, 192)))
        x = net.cat(branches)
        if draw.begins_stage(0.3, size) and draw.halved(net.shape(x)[2]) and affordable(x):
            y = net.conv(x, draw.width(narrow, 384), 3, 2, padding=0)
            x = net.cat([norm_act(net, y, "relu"), net.pool(x, "max_pool2d", 3, 2)])
    return head(net, draw, x)


def squeezed(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """SqueezeNet and SqueezeNext: few channels, then more, by kernels side by side or flat ones in a row."""
    fire = draw.chance(0.5)
    if draw.whole(0.4):
        net = NetworkBuilder((1, 3, *[draw.image((224, 160, 128))] * 2), dtype)
        x = net.activation(net.conv(-1, draw.width(32, 96), draw.one((3, 7)), 2, bias=True), "relu")
        x = net.pool(x, "max_pool2d", 3, 2)
    else:
        _, size, width = draw.stage()
        net = NetworkBuilder((1, width, size, size), dtype)
        x = net.activation(-1, "relu", inplace=False)

    def unit(source: int, out: int, kernel: int | tuple[int, int] = 1, stride: int = 1) -> int:
        y = net.conv(source, out, kernel, stride, bias=True)
        return net.activation(y if fire else net.batch_norm(y), "relu")

    for block in draw.blocks(6):
        if block and net.flops > limit / 2:
            break
        width, size = net.shape(x)[1:3]
        if fire:
            few, more = draw.width(8, max(16, width // 3)), draw.width(16, min(max(32, width), 320))
            y = unit(x, few)
            x = net.cat([unit(y, more), unit(y, more, 3)])
            if draw.begins_stage(0.3, size) and draw.halved(size):
                x = net.pool(x, "max_pool2d", 3, 2)
        else:
            stride = 2 if draw.begins_stage(0.25, size) and draw.halved(size) else 1
            out = draw.wider(width, 512) if stride > 1 else width
            y = unit(unit(x, max(4, width // 2), 1, stride), max(4, width // 4))
            y = unit(unit(y, max(4, out // 2), (1, 3)), max(4, out // 2), (3, 1))
            y = unit(y, out)
            x = x if stride == 1 else unit(x, out, 1, stride)
            x = net.activation(net.binary("add", y, x), "relu")
    if fire and draw.chance(0.5):  # classes are channels
        x = net.activation(net.conv(x, draw.one((10, 1000)), 1, bias=True), "relu")
        net.flatten(net.global_pool(x))
        return net
    return head(net, draw, x)


def hybrid(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """MobileViT and LeViT: convolutions, then attention over what they wrote, and back to pictures."""
    size = 2 * draw.one((4, 4, 7, 8, 8, 14, 16, 16))
    heads = draw.one((2, 3, 4, 4, 6))
    width = heads * draw.one((16, 16, 24, 32, 36, 48))
    net = NetworkBuilder((1, draw.width(24, 160), size, size), dtype)
    act = draw.name(("silu", "hardswish"))
    x = norm_act(net, net.conv(-1, width, 3, 1 if act == "silu" else 2), act)
    for block in draw.blocks(3):
        if block and net.flops > limit:
            break
        x = (_folded if act == "silu" else _along)(net, draw, x, heads, limit)
    return head(net, draw, x)


def _folded(net: NetworkBuilder, draw: Draw, x: int, heads: int, limit: float) -> int:
    """MobileViT's block: attention among the pixels that lie alike in patches of two by two."""
    n, width, size, _ = net.shape(x)
    side = size // 2
    y = net.conv(norm_act(net, net.conv(x, width, 3), "silu"), width, 1)
    y = net.reshape(y, (n * width * side, 2, side, 2))
    y = net.reshape(net.transpose(y, 1, 2), (n, width, side * side, 4), copies=True)
    tokens = (4 * n, side * side, width)
    y = net.reshape(net.transpose(y, 1, 3), tokens)
    for layer in range(draw.one((1, 2, 3))):
        if layer and net.flops > limit:
            break
        q, k, v = net.query_key_value(net.linear(net.layer_norm(y), 3 * width), heads)
        z = net.reshape(net.transpose(net.attention(q, k, v), 1, 2), tokens)
        y = net.binary("add", y, net.linear(z, width))
        z = net.activation(net.linear(net.layer_norm(y), 2 * width), "silu", inplace=False)
        y = net.binary("add", y, net.linear(z, width))
    y = net.reshape(net.layer_norm(y), (n, 4, side * side, width))
    y = net.reshape(net.transpose(y, 1, 3), (n * width * side, side, 2, 2), copies=True)
    y = net.reshape(net.transpose(y, 1, 2), (n, width, size, size), copies=True)
    y = norm_act(net, net.conv(y, width, 1), "silu")
    return norm_act(net, net.conv(net.cat([x, y]), width, 3), "silu")


def _along(net: NetworkBuilder, draw: Draw, x: int, heads: int, limit: float) -> int:
    """LeViT's block: keys narrower than values, a bias for every distance, batch norm over tokens."""
    n, width, size, _ = net.shape(x)
    tokens = (n, size * size, width)
    narrow, wide = draw.one((16, 16, 32)), draw.one((1, 2, 4)) * 16

    def dense(source: int, out: int) -> int:
        y = net.linear(source, out, bias=False)
        flat = net.batch_norm(net.reshape(y, (n * tokens[1], out)))
        return net.reshape(flat, (n, tokens[1], out))

    # Batch norm at rest keeps sums as large as they are: a real one makes them of size one, as this one does.
    y = net.layer_norm(net.transpose(net.reshape(x, (n, width, tokens[1])), 1, 2))
    for layer in range(draw.one((1, 2, 3))):
        if layer and net.flops > limit:
            break
        each = 2 * narrow + wide
        z = net.reshape(dense(y, heads * each), (n, tokens[1], heads, each))
        q, k, v = net.split(z, (narrow, narrow, wide), 3)
        q, k, v = net.permute(q, (0, 2, 1, 3)), net.permute(k, (0, 2, 3, 1)), net.permute(v, (0, 2, 1, 3))
        a = net.scalar("mul", net.matmul(q, k), 0.1 * narrow**-0.5)
        a = net.softmax(net.binary("add", a, net.distance_bias(tokens[1], heads, tokens[1])))
        z = net.reshape(net.transpose(net.matmul(a, v), 1, 2), (n, tokens[1], heads * wide), copies=True)
        z = dense(net.activation(z, "hardswish", inplace=False), width)
        y = net.binary("add", y, z)
        z = net.activation(dense(y, 2 * width), "hardswish", inplace=False)
        y = net.binary("add", y, dense(z, width))
    return net.reshape(net.transpose(y, 1, 2), (n, width, size, size), copies=True)


def pointwise(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ConvNeXt: large depthwise kernels, channels last for norm and MLP, a learned scale."""
    if draw.whole(0.3):
        net = NetworkBuilder((1, 3, *[draw.image((224, 128, 96))] * 2), dtype)
        x = net.conv(-1, draw.width(24, 128), 4, 4, bias=True, padding=0)
        x = net.permute(net.layer_norm(net.permute(x, (0, 2, 3, 1))), (0, 3, 1, 2))
    else:
        batch, size, width = draw.stage()
        net = NetworkBuilder((batch, width, size, size), dtype)
        x = net.activation(-1, "relu", inplace=False)
    for block in draw.blocks(4):
        if block and net.flops > limit:
            break
        width = net.shape(x)[1]
        if draw.begins_stage(0.3, net.shape(x)[2]) and draw.halved(net.shape(x)[2]):
            width = draw.wider(width, 1024)
            y = net.permute(net.layer_norm(net.permute(x, (0, 2, 3, 1))), (0, 3, 1, 2))
            x = net.conv(y, width, 2, 2, bias=True, padding=0)
        y = net.conv(x, width, 7, 1, width, bias=True)
        y = net.layer_norm(net.permute(y, (0, 2, 3, 1)))
        y = net.activation(net.linear(y, draw.width(2 * width, 4 * width + 8)), "gelu")
        y = net.linear(y, width)
        if draw.chance(0.5):
            y = net.parameter_binary("mul", y, (width,))
        x = net.binary("add", net.permute(y, (0, 3, 1, 2)), x)
    return head(net, draw, x)


def any_norm(net: NetworkBuilder, x: int, kind: str) -> int:
    """Batch, group or instance norm."""
    if kind == "group_norm":
        width = net.shape(x)[1]
        return net.group_norm(x, next(g for g in (32, 16, 8, 4, 3, 2, 1) if width % g == 0))
    return net.instance_norm(x) if kind == "instance_norm" else net.batch_norm(x)


def any_act(net: NetworkBuilder, x: int, name: str) -> int:
    """An activation that may have a slope a channel."""
    return net.prelu(x) if name == "prelu" else net.activation(x, name)


def decoder(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """U-Net, DeepLab, super-resolution: down and up again, joined across; dilated branches."""
    size = draw.one((160, 128, 96, 64, 64, 48, 32))
    width = draw.width(8, {160: 16, 128: 24, 96: 32}.get(size, 64))
    norm = draw.name(("batch_norm", "batch_norm", "group_norm", "instance_norm"))
    act = draw.name(("relu", "relu", "leaky_relu", "silu", "prelu", "mish", "elu", "softplus"))
    up = draw.name(
        (
            "conv_transpose",
            "conv_transpose",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
        )
    )
    mode = draw.name(("", "", "", "reflect", "replicate", "constant"))
    net = NetworkBuilder((1, draw.one((1, 3, 3, 4)), size, size), dtype)

    def unit(x: int, out: int, dilation: int = 1) -> int:
        if mode:
            x = net.conv(net.pad(x, (1,) * 4, mode), out, 3, bias=norm != "batch_norm", padding=0)
        else:
            x = net.conv(x, out, 3, bias=norm != "batch_norm", dilation=dilation)
        return any_act(net, any_norm(net, x, norm), act)

    x = unit(-1, width)
    skips = []
    for _ in range(draw.one((1, 2, 2, 3))):
        if net.shape(x)[2] < 16 or net.flops > limit:
            break
        skips.append(x)
        x = net.pool(x, draw.name(("max_pool2d", "max_pool2d", "avg_pool2d")), 2, 2)
        x = unit(x, draw.width(net.shape(x)[1], 2 * net.shape(x)[1] + 8))
    if draw.chance(0.35):
        out = draw.width(16, 96)
        whole = net.resize(net.conv(net.global_pool(x), out, 1), "upsample_bilinear2d", net.shape(x)[2:])
        x = net.cat([net.conv(x, out, 1), *(unit(x, out, d) for d in (6, 12)[: draw.one((1, 2))]), whole])
        x = unit(x, out)
    while skips:
        skip = skips.pop()
        if up == "conv_transpose":
            groups = net.shape(x)[1] if draw.chance(0.1) else 1
            out = groups if groups > 1 else net.shape(skip)[1]
            kernel = draw.one((2, 2, 4))
            x = net.conv_transpose(x, out, kernel, 2, kernel // 2 - 1, groups)
        else:
            x = net.resize(x, up, net.shape(skip)[2:])
        if draw.chance(0.2):
            x = unit(net.binary("add", net.conv(x, net.shape(skip)[1], 1), skip), net.shape(skip)[1])
        else:
            x = unit(net.cat([x, skip]), net.shape(skip)[1])
    if draw.chance(0.2):
        net.pixel_shuffle(net.conv(x, 4 * 8, 3), 2)
    else:
        net.conv(x, draw.one((1, 2, 21)), 1, bias=True)
    return net


def video(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """R3D, R(2+1)D, X3D, 3-d U-Net: convolutions over time and space, whole, split or depthwise."""
    frames, size = draw.one((4, 8, 8, 16)), draw.one((56, 40, 28, 28, 16))
    width = draw.width(8, {56: 16, 40: 24}.get(size, 48))
    net = NetworkBuilder((1, 3, frames, size, size), dtype)
    style = draw.name(("whole", "split", "depthwise"))
    x = norm_act(
        net, net.conv(-1, width, (3, 5, 5) if draw.chance(0.5) else 3, (1, 2, 2), bias=False), "relu"
    )
    pools = draw.chance(0.4)
    for block in draw.blocks(4):
        if block and net.flops > limit:
            break
        width = net.shape(x)[1]
        if style == "whole":
            y = norm_act(net, net.conv(x, draw.width(width, width + 16), 3), "relu")
            y = net.batch_norm(net.conv(y, width, 3))
        elif style == "split":
            y = norm_act(net, net.conv(x, draw.width(width, 2 * width), (1, 3, 3)), "relu")
            y = net.batch_norm(net.conv(y, width, (3, 1, 1)))
        else:
            inner = draw.width(width, 3 * width)
            y = norm_act(net, net.conv(x, inner, 1), "relu")
            y = norm_act(net, net.conv(y, inner, 3, groups=inner), "silu")
            y = net.batch_norm(net.conv(y, width, 1))
        x = net.activation(net.binary("add", x, y, inplace=True), "relu")
        if pools and draw.begins_stage(1.0, net.shape(x)[3]) and min(net.shape(x)[2:]) >= 4:
            x = net.pool(x, "max_pool3d", 2, 2)
    if draw.chance(0.4):
        net.conv_transpose(x, draw.width(8, 32), 2, 2)
    else:
        net.linear(net.flatten(net.global_pool(x, kind="adaptive_avg_pool3d")), draw.one((10, 400)))
    return net


def light(draw: Draw, limit: float, dtype: str) -> NetworkBuilder:
    """ShuffleNet, GhostNet, ESPNet, CBAM, ConvNeXt V2: split, shuffle and reweight channels."""
    batch, size, width = draw.stage()
    width = 2 * max(4, min(width, 192) // 2)
    net = NetworkBuilder((batch, width, size, size), dtype)
    x = net.activation(-1, "relu", inplace=False)
    act = draw.name(("relu", "relu", "prelu", "leaky_relu"))
    style = draw.name(("shuffle", "ghost", "dilated", "attend", "respond"))
    if size == 1 and style == "respond":  # one place has no variance
        style = "attend"
    for block in draw.blocks(5):
        if block and net.flops > limit / 2:
            break
        width = net.shape(x)[1]
        if style == "shuffle":
            kept, y = net.chunk(x, 2, 1)
            y = norm_act(net, net.conv(y, width // 2, 1), "relu")
            y = net.batch_norm(net.conv(y, width // 2, 3, groups=width // 2))
            x = _shuffle(net, net.cat([kept, norm_act(net, net.conv(y, width // 2, 1), "relu")]))
        elif style == "ghost":
            y = any_act(net, net.batch_norm(net.conv(x, width // 2, 1)), act)
            cheap = any_act(net, net.batch_norm(net.conv(y, width // 2, 3, groups=width // 2)), act)
            y = net.slice(net.cat([y, cheap]), 1, 0, width)
            x = net.binary("add", x, y)
        elif style == "dilated":
            y = net.conv(x, width // 2, 1)
            own = width // 2 if draw.chance(0.5) else 1
            rates = (draw.one((1, 2)), draw.one((4, 8)))
            parts = [net.conv(y, width // 2, 3, dilation=rate, groups=own) for rate in rates]
            y = any_act(net, net.batch_norm(net.cat(parts)), act)
            x = net.binary("add", x, y)
        elif style == "attend":
            y = any_act(net, net.batch_norm(net.conv(x, width, 3)), act)
            means = [net.reduce(y, kind, (1,), True) for kind in ("mean", "amax")]
            places = net.activation(net.conv(net.cat(means), 1, 7), "sigmoid", inplace=False)
            most = net.conv(net.global_pool(y, kind="adaptive_max_pool2d"), width, 1)
            y = net.binary(
                "mul", net.binary("mul", y, places), net.activation(most, "sigmoid", inplace=False)
            )
            x = net.binary("add", x, y)
        else:
            y = net.conv(net.group_norm(x, 1), 2 * width, 1)
            spread = net.scalar("add", net.reduce(y, "var", (2, 3), True), 1e-5)
            share = net.binary("div", spread, net.reduce(spread, "mean", (1,), True))
            y = net.addcmul(y, share, y)
            x = net.binary("add", net.conv(y, width, 1), x)
    return head(net, draw, x)


def _shuffle(net: NetworkBuilder, x: int) -> int:
    n, c, h, w = net.shape(x)
    y = net.layout(x, "view", (n, 2, c // 2, h, w), size=(n, 2, c // 2, h, w))
    y = net.contiguous(net.transpose(y, 1, 2))
    return net.layout(y, "view", (n, c, h, w), size=(n, c, h, w))
