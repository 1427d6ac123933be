"""A run as a list of phases: what each trains with, and how one hands over to the next."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bcgd_jax.errors import UsageError
from bcgd_jax.layers import calibrate, weight_quantizers
from bcgd_jax.models import Quantization, create_model
from bcgd_jax.numerics import Binary, Ternary, Uniform, WeightQuantizer, make_projection
from bcgd_jax.optim import (
  bcgd,
  binary_relax,
  binary_relax_float_params,
  cosine,
  growing_eta,
  growing_rho,
  last_key_is_kernel,
  relax,
  step_decay,
)
from bcgd_jax.training.distillation import distillation, teacher_logits
from bcgd_jax.training.parallel import AXIS_NAME
from bcgd_jax.training.settings import (
  FLOAT_BITS,
  PhaseSettings,
  QuantizationSettings,
  RunSettings,
)
from bcgd_jax.training.state import TrainState, create_state, init_variables
from bcgd_jax.training.steps import AuxFn, LossFn, StepOptions, cross_entropy, normalize

PyTree = Any
Schedule = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
  """One phase, ready to run.

  Attributes:
    name: its name in `config.phases`.
    settings: its block of the configuration.
    options: what its steps are made of.
    host_model: the network as it is trained, outside any mapping over devices.
    float_params: state -> the float weights it stands for.
    quantizers: of the scored network, by path; empty where its weights are float.
    first_step, last_step: the run's steps [first_step, last_step) are this phase's.
    steps_per_epoch: training examples over batch size.
    learning_rate, rho: of the step within the phase, for the log.
    is_quantized: whether the scored network has any quantized part.
    calibrates: whether entering it sets alpha from data.
  """

  name: str
  settings: PhaseSettings
  options: StepOptions
  host_model: nn.Module
  float_params: Callable[[TrainState], PyTree]
  quantizers: Mapping[str, WeightQuantizer]
  first_step: int
  last_step: int
  steps_per_epoch: float
  learning_rate: Schedule
  rho: Schedule
  is_quantized: bool
  calibrates: bool


def make_quantizer(bits: int, settings: QuantizationSettings) -> WeightQuantizer | None:
  """The weight quantizer for a bit width: 1 binary, 2 ternary, 3..8 uniform, 32 none."""
  channel_axis = -1 if settings.scale_per == "channel" else None
  if bits == FLOAT_BITS:
    return None
  if bits == 1:
    return Binary(channel_axis=channel_axis)
  if bits == 2:
    return Ternary(rule=settings.ternary_rule, channel_axis=channel_axis)
  return Uniform(num_bits=bits, lloyd_steps=settings.lloyd_steps, channel_axis=channel_axis)


def make_quantization(
  settings: QuantizationSettings, *, weights: bool, activations: bool
) -> Quantization:
  """The network's quantization with its weights or its activations switched on or off."""
  weight = make_quantizer(settings.weight_bits, settings) if weights else None
  bits = settings.activation_bits if activations else FLOAT_BITS
  return Quantization(
    weight=weight,
    first=weight if settings.first_layer == "quantized" else None,
    last=weight if settings.last_layer == "quantized" else None,
    activation_bits=None if bits == FLOAT_BITS else bits,
    ste=settings.ste,
    alpha_proxy=settings.alpha_proxy,
    alpha_init=None,
  )


def make_model(
  settings: RunSettings,
  *,
  num_classes: int,
  weights: bool,
  activations: bool,
  axis_name: str | None = None,
) -> nn.Module:
  """The configured network with its weights or its activations quantized or not."""
  try:
    return create_model(
      settings.model.name,
      num_classes=num_classes,
      quantization=make_quantization(
        settings.quantization, weights=weights, activations=activations
      ),
      batch_norm=settings.model.batch_norm,
      batch_norm_affine=settings.model.batch_norm_affine,
      axis_name=axis_name,
      residual_alpha=settings.model.residual_alpha,
      dtype=jnp.dtype(settings.model.dtype),
    )
  except ValueError as error:
    raise UsageError(f"config.model: {error}") from error


def example_input(image_shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
  """The shape of a batch of one normalised image, for abstract evaluation."""
  return jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)


def model_quantizers(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, WeightQuantizer]:
  """The network's weight quantizers by parameter path."""
  return weight_quantizers(model, example_input(image_shape), rngs=jax.random.key(0), train=False)


def make_phases(
  settings: RunSettings, *, num_classes: int, image_shape: tuple[int, ...], num_examples: int
) -> tuple[Phase, ...]:
  """Every phase of a run, in order."""
  steps_per_epoch = num_examples / settings.data.batch_size
  phases: list[Phase] = []
  first_step = 0
  for name, phase in settings.phases.items():
    num_steps = 0 if phase.start_from else max(1, round(phase.epochs * steps_per_epoch))
    phases.append(
      _make_phase(
        settings,
        name,
        num_classes=num_classes,
        image_shape=image_shape,
        steps=(first_step, first_step + num_steps),
        steps_per_epoch=steps_per_epoch,
        alpha_is_new=not any(earlier.settings.quantize_activations for earlier in phases),
        # the settings refuse a first phase that distils
        teacher=phases[-1].options.eval_model if phase.distill_weight else None,
      )
    )
    first_step += num_steps
  return tuple(phases)


def enter_phase(
  phase: Phase,
  previous: PyTree | None,
  *,
  settings: RunSettings,
  image_shape: tuple[int, ...],
  calibration_images: Callable[[int], Iterable[np.ndarray]],
) -> TrainState:
  """The state a phase starts with.

  Its model is initialised, every leaf of `previous` is copied to the leaf of equal path, alpha is
  calibrated if it is new, and the optimizer starts afresh.

  Args:
    phase: the phase to enter.
    previous: variables the phase before ended with; None for a first phase.
    settings: of the run.
    image_shape: shape of one example.
    calibration_images: n -> n batches of uint8 images, not augmented.
  Returns:
    The state at step `phase.first_step`, on one device.
  Raises:
    UsageError: if a leaf of `previous` has no place of equal path and shape in the phase's model.
  """
  key = jax.random.fold_in(jax.random.key(settings.seed), 0)
  variables = init_variables(phase.host_model, image_shape, key)
  if previous is not None:
    variables = copy_leaves(previous, variables, phase=phase.name)
  if phase.calibrates:
    data = settings.data
    batches = [
      normalize(jnp.asarray(images), data.mean, data.std)
      for images in calibration_images(settings.quantization.calibration_batches)
    ]
    variables = calibrate(phase.host_model, variables, batches, train=True)
  state = create_state(
    variables,
    phase.options.tx,
    step=phase.first_step,
    with_ema=phase.settings.ema_decay > 0,
  )
  if phase.settings.optimizer == "binary_relax":
    relaxed = relax(state.params, make_projection(phase.quantizers), phase.settings.eta)
    state = dataclasses.replace(state, params=relaxed)
  return state


def copy_leaves(source: PyTree, target: PyTree, *, phase: str) -> PyTree:
  """`target` with every leaf of `source` at its path.

  Raises:
    UsageError: if a leaf of `source` has no leaf of equal path and shape in `target`.
  """
  sources = {_path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(source)}

  def pick(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    found = sources.get(_path_name(path))
    if found is None or found.shape != leaf.shape:
      return leaf
    return jnp.asarray(sources.pop(_path_name(path)), leaf.dtype)

  result = jax.tree_util.tree_map_with_path(pick, target)
  if sources:
    raise UsageError(
      f"phase {phase!r} has no parameter of equal path and shape for {sorted(sources)} of the "
      "weights it starts from."
    )
  return result


def _path_name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _make_phase(
  settings: RunSettings,
  name: str,
  *,
  num_classes: int,
  image_shape: tuple[int, ...],
  steps: tuple[int, int],
  steps_per_epoch: float,
  alpha_is_new: bool,
  teacher: nn.Module | None,
) -> Phase:
  phase = settings.phases[name]
  relaxes = phase.optimizer == "binary_relax"

  def model(*, weights: bool, axis_name: str | None) -> nn.Module:
    return make_model(
      settings,
      num_classes=num_classes,
      weights=weights,
      activations=phase.quantize_activations,
      axis_name=axis_name,
    )

  # scoring uses running statistics, so this one needs no axis
  eval_model = model(weights=phase.quantize_weights or relaxes, axis_name=None)
  quantizers = model_quantizers(eval_model, image_shape)
  num_steps = steps[1] - steps[0]
  learning_rate = _learning_rate(phase, steps_per_epoch=steps_per_epoch, num_steps=num_steps)
  rho = _rho(phase, steps_per_epoch=steps_per_epoch)
  loss_fn, aux_fn = _loss(phase, teacher)
  options = StepOptions(
    model=model(weights=phase.quantize_weights, axis_name=AXIS_NAME),
    eval_model=eval_model,
    tx=_optimizer(phase, quantizers, learning_rate, rho, steps_per_epoch=steps_per_epoch),
    loss_fn=loss_fn,
    mean=settings.data.mean,
    std=settings.data.std,
    axis_name=AXIS_NAME,
    seed_key=jax.random.key(settings.seed),
    accumulate_steps=phase.accumulate_steps,
    ema_decay=phase.ema_decay,
    aux_fn=aux_fn,
  )
  has_alpha = phase.quantize_activations and settings.quantization.activation_bits != FLOAT_BITS
  return Phase(
    name=name,
    settings=phase,
    options=options,
    host_model=model(weights=phase.quantize_weights, axis_name=None),
    float_params=_relaxed_float_params if relaxes else lambda state: state.params,
    quantizers=quantizers,
    first_step=steps[0],
    last_step=steps[1],
    steps_per_epoch=steps_per_epoch,
    learning_rate=learning_rate,
    rho=rho,
    is_quantized=bool(quantizers) or has_alpha,
    calibrates=has_alpha and alpha_is_new and settings.quantization.alpha_init == "calibrate",
  )


def _relaxed_float_params(state: TrainState) -> PyTree:
  return binary_relax_float_params(state.opt_state)


def _loss(phase: PhaseSettings, teacher: nn.Module | None) -> tuple[LossFn, AuxFn | None]:
  """The loss and what computes its `aux`; `teacher` is the scored network to distil from."""
  if teacher is None:
    return cross_entropy(phase.label_smoothing), None
  loss_fn = distillation(
    weight=phase.distill_weight,
    temperature=phase.distill_temperature,
    label_smoothing=phase.label_smoothing,
  )
  return loss_fn, teacher_logits(teacher)


def _learning_rate(phase: PhaseSettings, *, steps_per_epoch: float, num_steps: int) -> Schedule:
  warmup = round(phase.warmup_epochs * steps_per_epoch)
  if phase.schedule == "step":
    boundaries = tuple(round(epoch * steps_per_epoch) for epoch in phase.decay_epochs)
    return step_decay(
      phase.learning_rate, boundaries, factor=phase.decay_factor, warmup_steps=warmup
    )
  if phase.schedule == "cosine":
    return cosine(phase.learning_rate, max(1, num_steps), warmup_steps=warmup)
  return optax.constant_schedule(phase.learning_rate)


def _rho(phase: PhaseSettings, *, steps_per_epoch: float) -> Schedule:
  if not phase.quantize_weights:
    return optax.constant_schedule(0.0)
  if phase.rho_growth == 1:
    return optax.constant_schedule(phase.rho)
  return growing_rho(
    phase.rho,
    phase.rho_growth,
    steps_per_epoch=max(1, round(steps_per_epoch)),
    maximum=phase.rho_maximum,
  )


def _optimizer(
  phase: PhaseSettings,
  quantizers: Mapping[str, WeightQuantizer],
  learning_rate: Schedule,
  rho: Schedule,
  *,
  steps_per_epoch: float,
) -> optax.GradientTransformationExtraArgs:
  projection = make_projection(quantizers)
  blends = phase.quantize_weights and (phase.rho > 0)
  tx = bcgd(
    learning_rate,
    projection,
    rho=rho if blends else 0.0,
    momentum=phase.momentum,
    weight_decay=phase.weight_decay,
    is_decayed=last_key_is_kernel if phase.decayed == "kernels" else None,
    alpha_rate=phase.alpha_rate,
    alpha_clip=phase.alpha_clip,
  )
  if phase.optimizer == "bcgd":
    return tx
  eta = growing_eta(
    phase.eta,
    phase.eta_growth,
    steps_per_epoch=max(1, round(steps_per_epoch)),
    relax_epochs=phase.relax_epochs,
  )
  return binary_relax(tx, projection, eta)
