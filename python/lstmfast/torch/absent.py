"""Says in one sentence that PyTorch is not installed, before another module of this package imports it."""

import importlib.util
import sys

_SENTENCE = "lstmfast.torch needs PyTorch: pip install 'lstmfast[torch]'"

if importlib.util.find_spec("torch") is None:
    if sys.argv[:1] == ["-m"]:  # `python -m lstmfast.torch`, which imports this package first
        print(_SENTENCE, file=sys.stderr)
        raise SystemExit(2)
    raise ModuleNotFoundError(_SENTENCE, name="torch")
