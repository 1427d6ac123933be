"""Runs an exported .npz with NumPy alone, written from docs/deploy.md: its proof."""

import hashlib
import json

import numpy as np


def load(path):
  """(program, arrays) of a file that is as it was written."""
  with open(path, "rb") as file:
    data = file.read()
  body, seal = data[:-71], data[-71:]
  if seal != b"sha256:" + hashlib.sha256(body).hexdigest().encode():
    raise ValueError(f"{path} is damaged")
  with np.load(path, allow_pickle=False) as file:
    arrays = {name: file[name] for name in file.files}
  return json.loads(arrays["program.json"].tobytes()), arrays


def read(reference, arrays):
  """An array that a field refers to, unpacked where it is packed."""
  array = arrays[reference["array"]]
  if "packed_bits" not in reference:
    return array
  bits, shape = reference["packed_bits"], reference["shape"]
  numbers = (array[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & (2**bits - 1)
  numbers = numbers.reshape(-1)[: np.prod(shape)].astype(np.int64).reshape(shape)
  return 2 * numbers - 1 if bits == 1 else numbers - 2 ** (bits - 1)


def windows(x, size, stride, padding):
  """[batch, height, width, channels, rows, columns] of a padded map."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))
  return view[:, ::stride, ::stride]


def count_reached(acc, thresholds):
  return (acc[..., None] >= thresholds).sum(axis=-1)


def float_sum(node, values, arrays):
  first, second = (
    values[name].astype(np.float32) * read(slope, arrays)
    for name, slope in zip(node["inputs"], node["slopes"], strict=True)
  )
  total = (first + second) + read(node["offset"], arrays)
  return np.clip(np.rint(total), 0, node["num_levels"]).astype(np.int64)


def table_sum(acc, code, thresholds):
  return count_reached(acc, thresholds[np.arange(acc.shape[-1]), code])


def logits(node, x, arrays):
  products = x.sum(axis=(1, 2)) @ read(node["weights"], arrays).astype(np.float64)
  products = products.astype(np.float32)
  return products * read(node["scale"], arrays) + read(node["bias"], arrays)


def run(program, arrays, images):
  """Every node's output, by name, of uint8 images [batch, height, width, channels]."""
  values = {"image": images.astype(np.int64) - program["image"]["zero_point"]}
  for node in program["nodes"]:
    kind, x = node["kind"], values.get(node.get("input"))
    if kind == "Conv":
      weights = read(node["weights"], arrays).astype(np.int64)
      view = windows(x, weights.shape[:2], node["stride"], node["padding"])
      y = np.einsum("bhwcij,ijco->bhwo", view, weights)
    elif kind == "MaxPool":
      size = (node["window"], node["window"])
      y = windows(x, size, node["stride"], node["padding"]).max(axis=(-2, -1))
    elif kind == "Subsample":
      y = x[:, :: node["stride"], :: node["stride"]]
      y = np.pad(y, ((0, 0), (0, 0), (0, 0), (0, node["channels"] - y.shape[-1])))
    elif kind == "Staircase":
      y = count_reached(x, read(node["thresholds"], arrays))
    elif kind == "SameStepSum":
      thresholds = read(node["thresholds"], arrays)
      levels = thresholds.shape[1] // 2
      y = np.clip(count_reached(x, thresholds) - levels + values[node["shortcut"]], 0, levels)
    elif kind == "TableSum":
      y = table_sum(x, values[node["shortcut"]], read(node["thresholds"], arrays))
    elif kind == "FloatSum":
      y = float_sum(node, values, arrays)
    else:
      assert kind == "Logits", kind
      y = logits(node, x, arrays)
    values[node["name"]] = y
  return values
