"""Decompresses record batches, a piece at a time.

kafka-python 3.0.12 decompresses a whole batch at once, whatever its size: 1 MiB of zstd can hold
gigabytes. It also copies the rest of a snappy batch for each of its blocks.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping

import cramjam
import zstandard
from kafka.errors import UnsupportedCodecError
from lz4.frame import LZ4FrameDecompressor

#: The most bytes of a piece. Producers rarely make batches that are larger.
PIECE_BYTES = 16 * 1024 * 1024

#: How a batch of xerial's snappy-java begins; versions follow, of 4 bytes each.
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_BYTES = 16
#: Nothing compressed by snappy is more than some 21 times as large.
_SNAPPY_RATIO = 32


def decompress(codec: int, data: bytes) -> Iterator[bytes]:
    """Decompress the records of a batch.

    Args:
        codec: Kafka's number of the codec, 1 to 4.
        data: The compressed records.

    Yields:
        Pieces of at most `PIECE_BYTES`.

    Raises:
        ValueError: They are damaged.
        UnsupportedCodecError: The codec is not known.
    """
    pieces = _CODECS.get(codec)
    if pieces is None:
        raise UnsupportedCodecError(f"the codec {codec} is not known")
    try:
        yield from pieces(data)
    except (zlib.error, zstandard.ZstdError, cramjam.DecompressionError, RuntimeError) as error:
        raise ValueError(str(error)) from None


def _gzip(data: bytes) -> Iterator[bytes]:
    while data:  # one member after the other
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while not member.eof:
            piece = member.decompress(data, PIECE_BYTES)
            data = member.unused_data if member.eof else member.unconsumed_tail
            if not piece and not data and not member.eof:
                raise ValueError("the compressed records end too early")
            yield piece


def _snappy(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield _snappy_block(data)
        return
    at = _XERIAL_BYTES
    parts: list[bytes] = []
    size = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        block = _snappy_block(data[at + 4 : end])
        if parts and size + len(block) > PIECE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(block)
        size += len(block)
        at = end
    yield b"".join(parts)


def _snappy_block(block: bytes) -> bytes:
    # The block begins with its size, for which the library takes memory at once.
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    if size > _SNAPPY_RATIO * len(block):
        raise ValueError(f"a snappy block of {len(block)} bytes cannot hold {size}")
    return bytes(cramjam.snappy.decompress_raw(block))


def _lz4(data: bytes) -> Iterator[bytes]:
    while data:  # one frame after the other
        frame = LZ4FrameDecompressor()
        yield frame.decompress(data, PIECE_BYTES)
        while not frame.eof:
            if frame.needs_input:
                raise ValueError("the compressed records end too early")
            yield frame.decompress(b"", PIECE_BYTES)
        data = frame.unused_data or b""


def _zstd(data: bytes) -> Iterator[bytes]:
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        while piece := reader.read(PIECE_BYTES):
            yield piece


_CODECS: Mapping[int, Callable[[bytes], Iterator[bytes]]] = {
    1: _gzip,
    2: _snappy,
    3: _lz4,
    4: _zstd,
}
