"""Folds the layers of a network into the nodes of an integer program."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from bcgd_jax.errors import UsageError
from bcgd_jax.export import thresholds as folding
from bcgd_jax.export.integer import (
  MAX_PIXEL,
  Affine,
  Codes,
  Conv,
  FloatSum,
  Image,
  Logits,
  MaxPool,
  Node,
  SameStepSum,
  Staircase,
  Subsample,
  TableSum,
)
from bcgd_jax.export.requantize import Reach, find_reach, solve_requantizer
from bcgd_jax.models import BATCH_NORM_EPSILON
from bcgd_jax.numerics import ALPHA_RANGE, WeightQuantizer

_MAX_ACC = 2**31 - 1
_MAX_INT16 = 127 * 256 + 127  # two signed bytes
# Float32 arithmetic moves a threshold by some units in the last place of the largest term: 1e-6 of
# a code is usual at 4 bits, 1e-4 at 8. More than this is another network.
_MAX_SHIFT = 0.01


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Value:
  """An integer tensor while a network is folded: it stands for step * (integer - zero point).

  Attributes:
    name: of the node, or "image".
    step: float64.
    smallest, largest: of the integer less its zero point.
    shape: (height, width, channels).
  """

  name: str
  step: float
  smallest: int
  largest: int
  shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
  """A convolution that is not a node yet: its weights may have to change their signs."""

  conv: Conv
  reach: Reach
  slope: np.ndarray  # float64 [channels]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
  """What an activation is given: the sum over terms of slope * acc, plus codes, plus the offset.

  Attributes:
    terms: convolutions.
    added: codes of a shortcut, or None.
    offset: float64 [channels].
    shape: (height, width, channels).
  """

  terms: tuple[_Term, ...]
  added: Value | None
  offset: np.ndarray
  shape: tuple[int, int, int]


class ProgramBuilder:
  """Takes a network's layers in forward order, by the names of their parameters.

  Args:
    image: the input.
    variables: "params" and "batch_stats", nested dicts of arrays.
    quantizers: of the kernels, by parameter path.
    num_levels: the highest code of every activation.
  """

  def __init__(
    self,
    image: Image,
    variables: Mapping[str, Any],
    *,
    quantizers: Mapping[str, WeightQuantizer],
    num_levels: int,
  ) -> None:
    self._params = flatten_dict(variables["params"], sep="/")
    self._stats = flatten_dict(variables.get("batch_stats", {}), sep="/")
    self._quantizers = quantizers
    self._num_levels = num_levels
    self.nodes: list[Node] = []
    self.largest_shift = 0.0
    self.weight_scales: dict[str, list[float]] = {}  # of one weight code, by layer; [1] or [out]
    self.image = Value(
      name="image",
      step=image.step,
      smallest=-image.zero_point,
      largest=MAX_PIXEL - image.zero_point,
      shape=image.shape,
    )

  def conv(self, x: Value, path: str, *, stride: int = 1) -> Sum:
    """A convolution, padded by (size - 1) / 2, or a dense layer.

    A dense kernel [height * width * in, out] becomes one of the map's own size.
    """
    kernel = np.asarray(self._params[f"{path}/kernel"])
    is_dense = kernel.ndim == 2
    kernel = kernel.reshape(*x.shape, -1) if is_dense else kernel
    height, width = kernel.shape[:2]
    padding = 0 if is_dense else (height - 1) // 2
    codes, scale, num_bits = self._encode(f"{path}/kernel", kernel, x)
    reach = find_reach(codes, smallest=x.smallest, largest=x.largest)
    conv = Conv(
      name=path,
      input=x.name,
      weights=codes,
      num_bits=num_bits,
      stride=stride,
      padding=padding,
      bound=max(1, int(np.abs([reach.low, reach.high]).max())),
    )
    channels = kernel.shape[-1]
    self.weight_scales[path] = scale.tolist()
    bias = np.asarray(self._params.get(f"{path}/bias", np.zeros(channels)), np.float64)
    return Sum(
      terms=(_Term(conv=conv, reach=reach, slope=np.broadcast_to(scale * x.step, (channels,))),),
      added=None,
      offset=bias,
      shape=(
        (x.shape[0] + 2 * padding - height) // stride + 1,
        (x.shape[1] + 2 * padding - width) // stride + 1,
        channels,
      ),
    )

  def normalize(self, x: Sum, path: str) -> Sum:
    """Batch norm with its running statistics."""
    assert x.added is None
    mean, var = (np.asarray(self._stats[f"{path}/{key}"], np.float64) for key in ("mean", "var"))
    # batch norm without scale and bias has no such parameters
    gain = np.asarray(self._params.get(f"{path}/scale", np.ones_like(var)), np.float64)
    gain = gain / np.sqrt(var + BATCH_NORM_EPSILON)
    bias = np.asarray(self._params.get(f"{path}/bias", np.zeros_like(var)), np.float64)
    terms = tuple(dataclasses.replace(term, slope=term.slope * gain) for term in x.terms)
    return dataclasses.replace(x, terms=terms, offset=(x.offset - mean) * gain + bias)

  def add(self, x: Sum, shortcut: Value | Sum) -> Sum:
    """A residual sum."""
    if isinstance(shortcut, Value):
      return dataclasses.replace(x, added=shortcut)
    return dataclasses.replace(
      x, terms=(*x.terms, *shortcut.terms), offset=x.offset + shortcut.offset
    )

  def activation(self, x: Sum, path: str) -> Value:
    """The staircase whose step is the parameter `path`/alpha; `path` may be used several times."""
    alpha = float(np.clip(np.float32(self._params[f"{path}/alpha"]), *ALPHA_RANGE))
    name = self._free_name(path)
    slopes = [term.slope / alpha for term in x.terms]
    offset = x.offset / alpha
    if not all(np.isfinite(array).all() for array in (*slopes, offset)):
      raise UsageError(f"the parameters before {path} must be finite, so that they can be folded")
    if len(x.terms) == 2:
      node: Codes = self._float_sum(name, x.terms, slopes, offset, step=alpha)
    else:
      term, slope = _with_positive_slope(x.terms[0], slopes[0])
      self.nodes.append(term.conv)
      node = self._staircase(name, term, slope, offset, x.added, step=alpha)
    self.nodes.append(node)
    return Value(name=name, step=alpha, smallest=0, largest=self._num_levels, shape=x.shape)

  def max_pool(self, x: Value, *, window: int, stride: int, padding: int = 0) -> Value:
    """Max-pooling of codes: it commutes with the staircase."""
    name = self._free_name(f"{x.name}/pool")
    self.nodes.append(
      MaxPool(name=name, input=x.name, window=window, stride=stride, padding=padding)
    )
    height, width = ((side + 2 * padding - window) // stride + 1 for side in x.shape[:2])
    return dataclasses.replace(x, name=name, shape=(height, width, x.shape[2]))

  def subsample(self, x: Value, *, stride: int, channels: int) -> Value:
    """The shortcut without parameters, see `models.resnet.pad_shortcut`."""
    name = self._free_name(f"{x.name}/shortcut")
    self.nodes.append(Subsample(name=name, input=x.name, stride=stride, channels=channels))
    height, width = (-(-side // stride) for side in x.shape[:2])
    return dataclasses.replace(x, name=name, shape=(height, width, channels))

  def logits(self, x: Value, path: str) -> None:
    """Mean over height and width, then the classifier."""
    kernel = np.asarray(self._params[f"{path}/kernel"])
    quantizer = self._quantizers.get(f"{path}/kernel")
    mean = x.step / (x.shape[0] * x.shape[1])
    if quantizer is None:
      weights, scale, num_bits = kernel.astype(np.float32), np.ones(1), 32
    else:
      encoded = quantizer.encode(jnp.asarray(kernel))
      weights, num_bits = np.asarray(encoded.codes), quantizer.num_bits
      scale = np.asarray(encoded.scale, np.float64).reshape(-1)
    self.weight_scales[path] = scale.tolist()
    classes = kernel.shape[-1]
    self.nodes.append(
      Logits(
        name="logits",
        input=x.name,
        weights=weights,
        num_bits=num_bits,
        scale=np.broadcast_to(scale * mean, (classes,)).astype(np.float32),
        bias=np.asarray(self._params.get(f"{path}/bias", np.zeros(classes)), np.float32),
      )
    )

  def _encode(self, path: str, kernel: np.ndarray, x: Value) -> tuple[np.ndarray, np.ndarray, int]:
    """Integer weights, their scale float64 [] or [channels], and the bits of one."""
    quantizer = self._quantizers.get(path)
    shape = self._params[path].shape
    if quantizer is not None:
      encoded = quantizer.encode(jnp.asarray(kernel.reshape(shape)))
      codes = np.asarray(encoded.codes).reshape(kernel.shape)
      scale = np.asarray(encoded.scale, np.float64).reshape(-1)
      return codes, scale, quantizer.num_bits
    # a float layer: as fine as an int32 accumulator allows
    window = math.prod(kernel.shape[:-1]) * max(x.largest, -x.smallest)
    limit = min(_MAX_INT16, _MAX_ACC // window)
    scale = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0).astype(np.float64) / limit
    scale = np.where(scale > 0.0, scale, 1.0)
    return np.rint(kernel / scale).astype(np.int16), scale, 16

  def _staircase(
    self,
    name: str,
    term: _Term,
    slope: np.ndarray,
    offset: np.ndarray,
    added: Value | None,
    *,
    step: float,
  ) -> Codes:
    conv, levels = term.conv, self._num_levels
    is_same_step = added is not None and added.step == step
    if added is None or is_same_step:
      wanted = np.arange(1 - levels if is_same_step else 1, levels + 1)
      exact = folding.exact_thresholds(slope, offset, wanted, bound=conv.bound)
      x = self._inputs_of(conv)
      requantizer = solve_requantizer(
        exact,
        wanted,
        slope=slope,
        offset=offset,
        weights=conv.weights,
        reach=term.reach,
        max_input=x,
        zero_point=levels + 1 if is_same_step else 0,
      )
      if requantizer is not None and added is not None:
        return SameStepSum(
          name=name,
          input=conv.name,
          shortcut=added.name,
          step=step,
          thresholds=exact,
          scheme=requantizer,
        )
      if requantizer is not None:
        return Staircase(
          name=name, input=conv.name, step=step, thresholds=exact, scheme=requantizer
        )
    ratio = None if added is None else np.float32(added.step / step)
    affine = Affine(
      slope=slope.astype(np.float32), offset=(offset + 0.5).astype(np.float32), ratio=ratio
    )
    found = folding.affine_thresholds(
      affine,
      num_levels=levels,
      num_codes=None if added is None else added.largest + 1,
      bound=conv.bound,
    )
    self._check_shift(name, found, slope, offset, added, step=step, bound=conv.bound)
    if added is None:
      return Staircase(name=name, input=conv.name, step=step, thresholds=found, scheme=affine)
    return TableSum(
      name=name,
      input=conv.name,
      shortcut=added.name,
      step=step,
      thresholds=found,
      scheme=affine,
    )

  def _inputs_of(self, conv: Conv) -> int:
    """The largest integer that a convolution multiplies with, zero point and all."""
    return MAX_PIXEL if conv.input == self.image.name else self._num_levels

  def _check_shift(
    self,
    name: str,
    found: np.ndarray,
    slope: np.ndarray,
    offset: np.ndarray,
    added: Value | None,
    *,
    step: float,
    bound: int,
  ) -> None:
    table = found if found.ndim == 3 else found[:, None, :]
    shift = folding.largest_shift(
      table, slope, offset, ratio=0.0 if added is None else added.step / step, bound=bound
    )
    if shift > _MAX_SHIFT:
      raise UsageError(
        f"{name}: float32 arithmetic must meet every threshold to {_MAX_SHIFT} of a code, got "
        f"{shift:.1e}: its batch norm has too large an offset or slope"
      )
    self.largest_shift = max(self.largest_shift, shift)

  def _float_sum(
    self,
    name: str,
    terms: tuple[_Term, ...],
    slopes: list[np.ndarray],
    offset: np.ndarray,
    *,
    step: float,
  ) -> FloatSum:
    first, second = (term.conv for term in terms)
    self.nodes += [first, second]
    return FloatSum(
      name=name,
      inputs=(first.name, second.name),
      step=step,
      slopes=(slopes[0].astype(np.float32), slopes[1].astype(np.float32)),
      offset=(offset + 0.5).astype(np.float32),
      num_levels=self._num_levels,
    )

  def _free_name(self, name: str) -> str:
    """The name, with a number where a shared activation has taken it already."""
    taken = {node.name for node in self.nodes}
    candidates = (name if n == 1 else f"{name}_{n}" for n in range(1, len(taken) + 2))
    return next(candidate for candidate in candidates if candidate not in taken)


def _with_positive_slope(term: _Term, slope: np.ndarray) -> tuple[_Term, np.ndarray]:
  """The same term with the weights of falling channels negated, and its slopes made positive."""
  falls = slope < 0.0
  sign = np.where(falls, -1, 1).astype(term.conv.weights.dtype)
  conv = dataclasses.replace(term.conv, weights=term.conv.weights * sign)
  reach = Reach(
    low=np.where(falls, -term.reach.high, term.reach.low),
    high=np.where(falls, -term.reach.low, term.reach.high),
  )
  return dataclasses.replace(term, conv=conv, reach=reach), np.abs(slope)
