"""A configuration turned into typed, checked settings, before anything is compiled."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from bcgd_jax.errors import UsageError

FLOAT_BITS = 32
_BITS = (*range(1, 9), FLOAT_BITS)
_PLACES = ("data_dir", "num_workers")  # of config.data


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
  """`config.model`: the network and how it computes."""

  name: str
  batch_norm: Literal["global", "per_replica"]
  batch_norm_affine: bool
  residual_alpha: Literal["own", "stream", "network"]
  dtype: Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationSettings:
  """`config.quantization`: bit widths (32 is float), estimators and alpha's start."""

  weight_bits: int
  activation_bits: int
  first_layer: Literal["quantized", "float"]
  last_layer: Literal["quantized", "float"]
  scale_per: Literal["tensor", "channel"]
  ternary_rule: Literal["lloyd", "twn", "twn_all", "sort"]
  lloyd_steps: int
  ste: Literal["clipped", "relu", "identity"]
  alpha_proxy: Literal["three_valued", "two_valued", "exact"]
  alpha_init: Literal["calibrate", "table"]
  calibration_batches: int

  def check(self, prefix: str) -> None:
    for key in ("weight_bits", "activation_bits"):
      bits = getattr(self, key)
      _require(bits in _BITS, f"{prefix}{key}", "in 1..8, or 32 for float", bits)
    _require(self.lloyd_steps >= 1, f"{prefix}lloyd_steps", ">= 1", self.lloyd_steps)
    _require(
      self.calibration_batches >= 1,
      f"{prefix}calibration_batches",
      ">= 1",
      self.calibration_batches,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
  """`config.data`: what is read, how it is cut, augmented and normalised."""

  dataset: str
  data_dir: str
  manual_dir: str
  validation_examples: int
  train_examples: int | None
  batch_size: int
  eval_batch_size: int
  image_size: int | None
  eval_resize: int | None
  min_crop_area: float
  max_bad_fraction: float
  pad: int
  flip: bool
  mean: tuple[float, ...]
  std: tuple[float, ...]
  num_workers: int

  def check(self, prefix: str) -> None:
    for key in ("batch_size", "eval_batch_size"):
      _require(getattr(self, key) >= 1, f"{prefix}{key}", ">= 1", getattr(self, key))
    for key in ("validation_examples", "pad", "num_workers"):
      _require(getattr(self, key) >= 0, f"{prefix}{key}", ">= 0", getattr(self, key))
    for key in ("train_examples", "image_size", "eval_resize"):
      value = getattr(self, key)
      _require(value is None or value >= 1, f"{prefix}{key}", ">= 1, or None", value)
    _require(0 < self.min_crop_area <= 1, f"{prefix}min_crop_area", "in (0, 1]", self.min_crop_area)
    _require(
      0 <= self.max_bad_fraction < 1,
      f"{prefix}max_bad_fraction",
      "in [0, 1)",
      self.max_bad_fraction,
    )
    _require(len(self.mean) >= 1, f"{prefix}mean", "one value, or one a channel", self.mean)
    _require(
      len(self.std) == len(self.mean) and min(self.std) > 0,
      f"{prefix}std",
      "positive and as long as mean",
      self.std,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSettings:
  """One block named in `config.phases`; see configs/default.py for the meaning of each key."""

  epochs: float
  quantize_weights: bool
  quantize_activations: bool
  start_from: str
  optimizer: Literal["bcgd", "binary_relax"]
  learning_rate: float
  schedule: Literal["step", "cosine", "constant"]
  decay_epochs: tuple[float, ...]
  decay_factor: float
  warmup_epochs: float
  momentum: float
  weight_decay: float
  decayed: Literal["all", "kernels"]
  rho: float
  rho_growth: float
  rho_maximum: float
  alpha_rate: float
  alpha_clip: float
  eta: float
  eta_growth: float
  relax_epochs: int
  label_smoothing: float
  distill_weight: float
  distill_temperature: float
  ema_decay: float
  accumulate_steps: int
  recalibrate_batches: int

  def check(self, prefix: str) -> None:
    positive = ("epochs", "learning_rate", "eta", "eta_growth", "alpha_clip", "rho_growth")
    for key in (*positive, "distill_temperature"):
      _require(getattr(self, key) > 0, f"{prefix}{key}", "> 0", getattr(self, key))
    for key in ("momentum", "ema_decay", "label_smoothing"):
      _require(0 <= getattr(self, key) < 1, f"{prefix}{key}", "in [0, 1)", getattr(self, key))
    for key in ("rho", "rho_maximum", "distill_weight"):
      _require(0 <= getattr(self, key) <= 1, f"{prefix}{key}", "in [0, 1]", getattr(self, key))
    for key in ("weight_decay", "alpha_rate", "warmup_epochs", "relax_epochs"):
      _require(getattr(self, key) >= 0, f"{prefix}{key}", ">= 0", getattr(self, key))
    _require(
      list(self.decay_epochs) == sorted(set(self.decay_epochs))
      and min(self.decay_epochs, default=1) > 0,
      f"{prefix}decay_epochs",
      "positive and increasing",
      self.decay_epochs,
    )
    _require(0 < self.decay_factor <= 1, f"{prefix}decay_factor", "in (0, 1]", self.decay_factor)
    _require(self.accumulate_steps >= 1, f"{prefix}accumulate_steps", ">= 1", self.accumulate_steps)
    _require(
      self.recalibrate_batches >= 0,
      f"{prefix}recalibrate_batches",
      ">= 0",
      self.recalibrate_batches,
    )
    _require(
      self.warmup_epochs == 0 or (self.schedule != "constant" and self.warmup_epochs < self.epochs),
      f"{prefix}warmup_epochs",
      'below epochs, and 0 with schedule="constant"',
      self.warmup_epochs,
    )
    _require(
      not (self.optimizer == "binary_relax" and self.quantize_weights),
      f"{prefix}quantize_weights",
      'False with optimizer="binary_relax", which relaxes the weights itself',
      self.quantize_weights,
    )
    _require(
      not (self.optimizer == "binary_relax" and self.ema_decay),
      f"{prefix}ema_decay",
      '0 with optimizer="binary_relax"',
      self.ema_decay,
    )
    _require(
      self.rho_growth == 1 or self.rho <= self.rho_maximum,
      f"{prefix}rho",
      "at most rho_maximum where rho grows",
      self.rho,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
  """A whole run. `phases` maps each phase's name to its settings, in the order they run."""

  seed: int
  parallel: Literal["pmap", "shard_map"]
  model: ModelSettings
  quantization: QuantizationSettings
  data: DataSettings
  phases: Mapping[str, PhaseSettings]
  selection: Literal["last", "best_validation"]
  log_every_steps: int
  checkpoint_every_steps: int
  keep_checkpoints: int
  eval_every_epochs: float

  def check(self) -> None:
    _require(self.seed >= 0, "seed", ">= 0", self.seed)
    _require(self.log_every_steps >= 1, "log_every_steps", ">= 1", self.log_every_steps)
    _require(
      self.checkpoint_every_steps >= 1 and self.checkpoint_every_steps % self.log_every_steps == 0,
      "checkpoint_every_steps",
      f"a positive multiple of log_every_steps ({self.log_every_steps}), so that a resumed run "
      "logs the same averages",
      self.checkpoint_every_steps,
    )
    _require(self.keep_checkpoints >= 2, "keep_checkpoints", ">= 2", self.keep_checkpoints)
    _require(self.eval_every_epochs > 0, "eval_every_epochs", "> 0", self.eval_every_epochs)
    _require(
      self.selection == "last" or self.data.validation_examples > 0,
      "data.validation_examples",
      '> 0 with selection="best_validation"',
      self.data.validation_examples,
    )


def parse_settings(config: Mapping[str, Any]) -> RunSettings:
  """Checks a configuration and returns it typed.

  Args:
    config: nested mapping with exactly the keys of configs/default.py (further phase blocks may be
      added; each is named in `phases` or unused).
  Returns:
    The settings.
  Raises:
    UsageError: naming the key, the rule and the value, at the first unknown or missing key, wrong
      type or value out of range.
  """
  config = dict(config)
  names = config.pop("phases", None)
  if not isinstance(names, list | tuple) or not names or len(set(names)) != len(names):
    raise UsageError(f"phases must be a non-empty tuple of distinct names, got {names!r}.")
  fields = {field.name for field in dataclasses.fields(RunSettings)}
  phases = {}
  for name in [key for key, value in config.items() if key not in fields and _is_mapping(value)]:
    phases[name] = _build(PhaseSettings, config.pop(name), prefix=f"{name}.")
  for name in names:
    if name not in phases:
      raise UsageError(f"phases names {name!r}, but the configuration has no block {name!r}.")
  config["phases"] = {name: phases[name] for name in names}
  settings = _build(RunSettings, config, prefix="")
  _check_phase_order(settings)
  return settings


def to_json(config: Mapping[str, Any]) -> str:
  """The configuration as canonical JSON text: sorted keys, tuples as lists."""
  return json.dumps(config, indent=2, sort_keys=True, default=_to_plain) + "\n"


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
  """The configuration without the keys that may differ from one start of a run to the next.

  Where prepared data lies and how many processes read it change no batch. The record of imported
  weights has no such keys.
  """
  if "data" not in config:
    return dict(config)
  data = {key: value for key, value in config["data"].items() if key not in _PLACES}
  return {**config, "data": data}


def config_hash(config: Mapping[str, Any]) -> str:
  """SHA-256 of `to_json(without_places(config))`, hexadecimal: the identity of a run."""
  return hashlib.sha256(to_json(without_places(config)).encode()).hexdigest()


def _check_phase_order(settings: RunSettings) -> None:
  """What a phase needs of those before it.

  A teacher, where it distils; and alpha, once in the parameters, may not disappear again: a float
  phase has no place for it. A phase that takes its result from another run trains nothing, so the
  last one may not.
  """
  first, phase = next(iter(settings.phases.items()))
  _require(
    phase.distill_weight == 0,
    f"{first}.distill_weight",
    "0 in a first phase, which has no teacher",
    phase.distill_weight,
  )
  last, phase = list(settings.phases.items())[-1]
  _require(not phase.start_from, f"{last}.start_from", "empty in the last phase", phase.start_from)
  seen = ""
  for name, phase in settings.phases.items():
    if seen and not phase.quantize_activations and settings.quantization.activation_bits != 32:
      raise UsageError(
        f"{name}.quantize_activations must stay True after phase {seen!r} turned it on, got False."
      )
    seen = name if phase.quantize_activations else seen


def _to_plain(value: Any) -> Any:
  if _is_mapping(value):
    return dict(value)
  raise TypeError(f"a configuration holds numbers, strings and tuples of them, got {value!r}")


def _is_mapping(value: Any) -> bool:
  return isinstance(value, Mapping)


def _require(holds: bool, key: str, rule: str, value: Any) -> None:
  if not holds:
    raise UsageError(f"config.{key} must be {rule}, got {value!r}.")


def _build(cls: Any, values: Any, *, prefix: str) -> Any:
  if not _is_mapping(values):
    raise UsageError(f"config.{prefix[:-1]} must be a block of keys, got {values!r}.")
  annotations = typing.get_type_hints(cls)
  unknown = sorted(set(values) - set(annotations))
  missing = sorted(set(annotations) - set(values))
  if unknown:
    raise UsageError(f"config.{prefix}{unknown[0]} is not a key; keys are {sorted(annotations)}.")
  if missing:
    raise UsageError(f"config.{prefix}{missing[0]} is missing (configs/default.py has every key).")
  built = {
    key: _convert(values[key], annotation, key=f"{prefix}{key}")
    for key, annotation in annotations.items()
  }
  result = cls(**built)
  if cls is RunSettings:
    result.check()
  elif hasattr(result, "check"):
    result.check(prefix)
  return result


def _convert(value: Any, annotation: Any, *, key: str) -> Any:
  """Returns `value` as `annotation`; an int is a float, a list a tuple, nothing else converts."""
  if dataclasses.is_dataclass(annotation):
    return _build(annotation, value, prefix=f"{key}.")
  origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is Literal:
    choices = ", ".join(map(repr, arguments))
    _require(value in arguments, key, f"one of {choices}", value)
    return value
  if origin is Mapping:
    return types.MappingProxyType(value)
  if origin is types.UnionType:
    return None if value is None else _convert(value, arguments[0], key=key)
  if origin is tuple:
    _require(isinstance(value, list | tuple), key, "a tuple", value)
    return tuple(_convert(item, arguments[0], key=key) for item in value)
  if annotation is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  wrong = not isinstance(value, annotation) or (annotation is int and isinstance(value, bool))
  _require(not wrong, key, f"of type {annotation.__name__}", value)
  if annotation is float:
    _require(value == value and abs(value) != float("inf"), key, "finite", value)
  return value
