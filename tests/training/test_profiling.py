"""A trace holds the steps asked for; bad values are refused before anything is compiled."""

import gzip
import json
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from absl import logging
from tiny_config import tiny_config

from bcgd_jax.errors import UsageError
from bcgd_jax.training import trainer as trainer_module
from bcgd_jax.training.profiling import StepProfiler, parse_profile_steps
from bcgd_jax.training.run import Hooks, abstract_state, open_run
from bcgd_jax.training.trainer import Trainer


@pytest.fixture(autouse=True, scope="module")
def data_dir(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield


def float_config():
  """Four steps of a float network."""
  config = tiny_config() | {"phases": ("float",), "selection": "last"}
  config["float"] |= {"epochs": 1.0, "ema_decay": 0.0}
  return config


@pytest.mark.parametrize(
  ("value", "steps"), [(None, None), ("3,5", (3, 5)), (" 7 , 7 ", (7, 7)), ("1,1000", (1, 1000))]
)
def test_steps_are_parsed(value, steps):
  assert parse_profile_steps(value) == steps


@pytest.mark.parametrize("value", ["", "5", "0,3", "5,3", "-1,3", "1,2,3", "1.0,2", "a,b", "1,²"])
def test_bad_steps_are_named(value):
  with pytest.raises(UsageError, match=r"--profile_steps must be FIRST,LAST") as caught:
    parse_profile_steps(value)
  assert repr(value) in str(caught.value)


def test_steps_beyond_the_run_are_refused_before_the_folder_is_made(tmp_path):
  hooks = Hooks(profiler=StepProfiler(tmp_path / "profile", (4, 5)))
  with pytest.raises(UsageError, match=r"steps of the run, which has 4, got 4,5"):
    open_run(float_config(), tmp_path / "run", devices=jax.devices()[:1], hooks=hooks)
  assert list(tmp_path.iterdir()) == []


METRICS = {"loss": 1.0, "accuracy": 0.5, "grad_norm": 1.0, "param_norm": 1.0}


def make_trainer(folder, take_step, *, records=None, **hooks):
  """A trainer of the float phase whose steps are `take_step`, and what it starts from."""
  run = open_run(float_config(), folder, devices=jax.devices()[:1], hooks=Hooks(**hooks))
  shapes = abstract_state(run, run.phases[0])
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  writer = mock.Mock(write=lambda record: records.append(record))
  trainer = Trainer(run, run.phases[0], writer, state, None)
  trainer._train = take_step
  return trainer, state


def test_trace_holds_the_steps_asked_for(tmp_path):
  profiler = StepProfiler(tmp_path / "profile", (2, 3))
  trainer, state = make_trainer(
    tmp_path / "run", lambda state, *_: (state, METRICS), profiler=profiler
  )
  for _ in range(4):
    trainer.step(state, iter([{}]))
  (path,) = (tmp_path / "profile").rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
  assert sorted(steps) == ["2", "3"]
  assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def drive(profiler, steps):
  """Asks as the loop does; returns what was begun and ended."""
  done = []
  with (
    mock.patch.object(jax.profiler, "start_trace", side_effect=lambda _: done.append("start")),
    mock.patch.object(jax.profiler, "stop_trace", side_effect=lambda: done.append("stop")),
    profiler,
  ):
    for step in steps:
      if profiler.begins_with(step):
        profiler.start()
      done.append(step)
      if profiler.ends_with(step):
        profiler.stop()
  return done


def test_trace_begins_before_its_first_step_and_ends_after_its_last(tmp_path):
  expected = [1, 2, "start", 3, 4, "stop", 5]
  assert drive(StepProfiler(tmp_path, (3, 4)), range(1, 6)) == expected
  assert drive(StepProfiler(tmp_path, (1, 1)), [1, 2]) == ["start", 1, "stop", 2]
  assert drive(StepProfiler(tmp_path, None), [1, 2]) == [1, 2]


def test_trace_of_a_run_that_stops_is_written(tmp_path):
  assert drive(StepProfiler(tmp_path, (2, 9)), [1, 2, 3]) == [1, "start", 2, 3, "stop"]


def test_run_that_goes_on_after_the_first_step_says_that_nothing_is_traced(tmp_path):
  with mock.patch.object(logging, "warning") as warning:
    assert drive(StepProfiler(tmp_path, (3, 6)), [5, 6, 7]) == [5, 6, 7]
  (call,) = warning.call_args_list
  assert "went on with step 5, after the first of --profile_steps=3,6" in call[0][0] % call[0][1:]


class Clock:
  """Stands still but for `wait`."""

  def __init__(self):
    self.now = 0.0

  def perf_counter(self):
    return self.now

  def wait(self, seconds, value):
    self.now += seconds
    return value


def test_share_of_waiting_for_input(tmp_path, monkeypatch):
  clock, records = Clock(), []
  monkeypatch.setattr(trainer_module, "time", clock)
  trainer, state = make_trainer(
    tmp_path / "run", lambda state, *_: clock.wait(1.0, (state, METRICS)), records=records
  )
  batches = (clock.wait(seconds, {}) for seconds in (100.0, 3.0, 5.0, 0.0))
  for _ in range(3):
    state = trainer.step(state, batches)
  trainer.log(3, state)
  # the first step compiles and does not count: 3 + 1 + 5 + 1 seconds, of which 8 for input
  assert records[0]["timing"] == {
    "examples_per_second": 16 / 5.0,
    "step_seconds": 5.0,
    "input_wait_share": 0.8,
  }
  state = trainer.step(state, batches)
  with trainer.untimed():
    clock.wait(50.0, None)
  trainer.log(4, state)
  assert [r["timing"]["input_wait_share"] for r in records if r["kind"] == "train"] == [0.8, 0.0]
  assert records[-1]["timing"]["step_seconds"] == 1.0
