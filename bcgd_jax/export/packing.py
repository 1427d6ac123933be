"""Integer weights as bytes: eight, four or two to a byte."""

import numpy as np


def storage_bits(num_bits: int) -> int:
  """The bits that one weight takes in a file: 1, 2, 4 or 8; int16 weights are two of 8.

  Args:
    num_bits: of the quantizer, 1 to 8.
  """
  return next(bits for bits in (1, 2, 4, 8) if bits >= num_bits)


def pack_codes(codes: np.ndarray, num_bits: int) -> np.ndarray:
  """Codes as bytes, in C order, the first in the lowest bits; the last byte is filled with zeros.

  Of b = `storage_bits(num_bits)` each code takes b bits, as the unsigned number code + 2^(b-1), or
  (code + 1) / 2 for b = 1.

  Args:
    codes: int8, any shape: -1 and 1 for one bit, else in [-2^(b-1), 2^(b-1) - 1].
    num_bits: of the quantizer.
  Returns:
    uint8 [ceil(size * b / 8)].
  Raises:
    ValueError: if a code does not fit.
  """
  bits = storage_bits(num_bits)
  wide = codes.astype(np.int16).ravel()
  numbers = (wide + 1) // 2 if bits == 1 else wide + 2 ** (bits - 1)
  fits = np.isin(wide, (-1, 1)) if bits == 1 else (numbers >= 0) & (numbers < 2**bits)
  if not fits.all():
    raise ValueError(f"codes must fit {bits} bits, got {codes.min()} to {codes.max()}")
  count = 8 // bits
  numbers = np.pad(numbers, (0, -len(numbers) % count)).reshape(-1, count)
  shifts = bits * np.arange(count)
  return np.bitwise_or.reduce(numbers << shifts, axis=1).astype(np.uint8)


def unpack_table(num_bits: int) -> np.ndarray:
  """The codes in each byte: int8 [256, codes a byte]."""
  bits = storage_bits(num_bits)
  shifts = bits * np.arange(8 // bits)
  numbers = (np.arange(256)[:, None] >> shifts[None, :]) & (2**bits - 1)
  codes = 2 * numbers - 1 if bits == 1 else numbers - 2 ** (bits - 1)
  return codes.astype(np.int8)


def unpack_codes(packed: np.ndarray, num_bits: int, shape: tuple[int, ...]) -> np.ndarray:
  """The inverse of `pack_codes`: int8 of a shape."""
  size = int(np.prod(shape, dtype=np.int64))
  return unpack_table(num_bits)[packed].ravel()[:size].reshape(shape)


def split_int16(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """int16 weights as 256 * high + low, both int8; magnitudes up to 127 * 256 + 127."""
  low = ((weights.astype(np.int32) + 128) % 256 - 128).astype(np.int8)
  high = ((weights.astype(np.int32) - low) // 256).astype(np.int8)
  return high, low
