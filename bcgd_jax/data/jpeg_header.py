"""Decoding a JPEG file no further down than needed, by a lower height in its header.

A baseline file holds its rows of blocks from top to bottom, so a decoder that takes the picture to
be lower stops early. Of random-resized crops of photographs a seventh of a decoder's work goes: no
Python package known to us offers a partial decoder without TensorFlow.
"""

_START, _END = b"\xff\xd8", b"\xff\xd9"
_BASELINE = (0xC0, 0xC1)  # sequential Huffman coding, 8 bits or extended
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are no frames
_SCAN = 0xDA
# A row's colour is interpolated between its own and the next row of a chroma channel of half the
# height, which spans the next two rows.
_CONTEXT_ROWS = 2


def cut_below(data: bytes, row: int) -> bytes | None:
  """The file with a header that says it ends little below `row`.

  Decoded, its rows above `row` equal those of the whole file bit by bit (tried with libjpeg-turbo
  for all its chroma subsamplings). The decoder meets more data than it expects, which it warns of:
  it must be told to go on. Then it is silent about damage too, so what has no end marker, the sign
  of a file cut off, is left to a strict decoder.

  Args:
    data: a JPEG file.
    row: the first one not needed, at least 1.
  Returns:
    Bytes of data's length, or None where the file must be decoded whole: it ends above, is
    progressive or arithmetically coded, does not end in the end marker, or is no JPEG file.
  Source: ISO/IEC 10918-1, annex B (markers); our choice.
  """
  if not data.startswith(_START) or not data.endswith(_END):
    return None
  position = _find_frame(data)
  if position is None:
    return None
  # marker (2 bytes), length (2), precision (1), height (2)
  height = int.from_bytes(data[position + 5 : position + 7], "big")
  wanted = row + _CONTEXT_ROWS
  if wanted >= height:
    return None
  return b"".join((data[: position + 5], wanted.to_bytes(2, "big"), data[position + 7 :]))


def _find_frame(data: bytes) -> int | None:
  """Position of the marker of a baseline file's frame header; None if there is none."""
  position = len(_START)
  while position + 10 < len(data):
    prefix, marker = data[position], data[position + 1]
    if prefix != 0xFF or marker == _SCAN or marker in _OTHER_FRAMES:
      return None
    if marker in _BASELINE:
      return position
    position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
  return None
