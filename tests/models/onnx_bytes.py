"""Writes small ONNX graphs by hand: the wire format is tag, length, bytes; no package needed."""

from collections.abc import Sequence

FLOAT, UINT8, INT64, HALF = 1, 2, 7, 10


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: "int | str | bytes") -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _value(name: str, kind: int, shape: "Sequence[int | str]") -> bytes:
    sides = b"".join(_field(1, _field(1 if isinstance(side, int) else 2, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, sides)))


def _node(kind: str, source: str, target: str, *attributes: bytes) -> bytes:
    return _field(1, source) + _field(2, target) + _field(4, kind) + b"".join(_field(5, each) for each in attributes)


def channel_means(
    shape: "Sequence[int | str]", kind: int = FLOAT, *, keep: bool = False, outputs: Sequence[str] = ("means",)
) -> bytes:
    """A graph that takes pictures of a shape, NCHW or NHWC, and gives the mean of each channel.

    Args:
        shape: of the input; a text is an open dimension.
        kind: type of the input's numbers.
        keep: whether the output is (N, 3, 1, 1) rather than (N, 3).
        outputs: names; each is the same.
    """
    axes = (1, 2) if shape[1] != 3 else (2, 3)
    dims = _field(1, "axes") + b"".join(_field(8, axis) for axis in axes) + _field(20, 7)
    kept = _field(1, "keepdims") + _field(3, int(keep)) + _field(20, 2)
    cast = _node("Cast", "image", "floats", _field(1, "to") + _field(3, FLOAT) + _field(20, 2))
    nodes = [cast, *(_node("ReduceMean", "floats", name, dims, kept) for name in outputs)]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "means") + _field(11, _value("image", kind, shape))
    out_shape = [shape[0], 3, 1, 1] if keep else [shape[0], 3]
    graph += b"".join(_field(12, _value(name, FLOAT, out_shape)) for name in outputs)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))
