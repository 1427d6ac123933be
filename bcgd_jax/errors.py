"""Errors that a command reports in one line instead of a traceback."""


class UsageError(ValueError):
  """Bad input by the user: names the key or file, the rule and the value received."""


class TrainingError(RuntimeError):
  """A run that cannot go on for a reason in the run itself, such as a loss that is not finite."""


class CheckError(RuntimeError):
  """A measured result breaks the rule it was checked against."""


class PreemptedError(RuntimeError):
  """A run was asked to stop, has saved and goes on when started again."""
