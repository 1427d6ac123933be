"""Peak speed of accelerators, for the share of it that a program reaches."""

# Floating-point operations a second and device, dense, in bfloat16, by a part of JAX's device_kind.
# Vendors' data sheets; NVIDIA's are without sparsity, of the SXM variants.
_BFLOAT16 = {
  "H200": 989e12,
  "H100": 989e12,
  "A100": 312e12,
  "TPU v5 lite": 197e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Operations a second that a device could do at most, or None where that is not known.

  float32 is counted against bfloat16's peak too: by JAX's default precision TPUs multiply in
  bfloat16, and GPUs in TF32, at half the speed.
  """
  found = [flops for name, flops in _BFLOAT16.items() if name in device_kind]
  return found[0] if found else None
