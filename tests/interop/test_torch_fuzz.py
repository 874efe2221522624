"""Random programs do the same with lstmfast.torch as with torch.nn; and the fuzzer that says so sees planted faults."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")

import lstmfast.torch as ours  # noqa: E402
from support import fuzz_arguments, fuzz_torch, plain_lstm  # noqa: E402
from support import fuzz_parts as parts  # noqa: E402
from support.fuzz_torch import Program, Step  # noqa: E402

SECONDS = 40
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.sweep
def test_random_programs_do_the_same_with_torch_and_with_lstmfast() -> None:
    seed = int(os.environ.get("LSTMFAST_FUZZ_SEED") or 2)  # the script is for other ones
    report = fuzz_torch.fuzz(fuzz_torch.Plan(seed, programs=4000, seconds=SECONDS))
    print(f"LSTMFAST_FUZZ_SEED={seed}: {report.programs} programs")
    assert not report.failures, f"LSTMFAST_FUZZ_SEED={seed}\n\n" + "\n\n".join(f.text for f in report.failures.values())


@pytest.mark.parametrize("number", range(50))
def test_a_seed_is_a_program_and_always_the_same(number: int) -> None:
    seed = fuzz_torch.seed_of(0, number)
    assert fuzz_torch.draw(seed) == fuzz_torch.draw(seed)
    assert fuzz_arguments.draw(seed) == fuzz_arguments.draw(seed)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Makes another forward that of our class; it is given the right one, the module and the arguments."""

    def plant(forward: Callable[..., Any]) -> None:
        true = torch.nn.LSTM.forward
        monkeypatch.setattr(ours.LSTM, "forward", lambda self, *args, **kwargs: forward(true, self, *args, **kwargs))

    return plant


def kinds(*steps: dict[str, Any], **about: Any) -> set[str]:
    """The kinds of difference in a program of these calls."""
    program = Program(1, made=parts.BY_CLASS, steps=tuple(Step(k, **named) for k, named in enumerate(steps)), **about)
    return {difference.kind for difference in fuzz_torch.check(program)}


CALLS = [{"derivative": name} for name in parts.DERIVATIVES] + [{"change": name} for name in parts.CHANGES]
CALLS += [{"context": name, "derivative": "none"} for name in parts.CONTEXTS]
CALLS += [{"layout": name} for name in parts.LAYOUTS] + [{"state": name} for name in parts.STATES]
CALLS += [{"shape": name} for name, part in parts.SHAPES.items() if not part.is_ours]
CALLS += [{"write": name} for name, part in parts.WRITES.items() if part.fits(parts.Options())]


def test_torchs_own_forward_differs_in_no_call(planted: Any) -> None:
    planted(lambda true, self, *args: true(self, *args))
    assert kinds(*CALLS) == set()


@pytest.mark.parametrize("treatment", [n for n, part in parts.TREATMENTS.items() if part.fits(parts.Options())])
def test_torchs_own_forward_differs_after_no_treatment(treatment: str, planted: Any) -> None:
    planted(lambda true, self, *args: true(self, *args))
    assert kinds({}, {"write": "optimizer step"}, treatments=(treatment,)) == set()


def stale(true: Any, self: Any, *args: Any) -> Any:
    """Answers with the weights of the first call."""
    kept = self.__dict__.setdefault("first_weights", [w.detach().clone() for w in self._flat_weights])
    self._flat_weights = kept
    return true(self, *args)


def off_in_backward(true: Any, self: Any, x: Any, *hx: Any) -> Any:
    """x's gradient is a thousandth too large."""
    return true(self, x * 1.001 - (x * 0.001).detach(), *hx)


def drawing(true: Any, self: Any, *args: Any) -> Any:
    """Draws a random number."""
    torch.rand(1)
    return true(self, *args)


def wider(true: Any, self: Any, *args: Any) -> Any:
    """Returns float64."""
    output, state = true(self, *args)
    return output.double(), state


def refusing(true: Any, self: Any, *args: Any) -> Any:
    """Works on no input that has a gradient."""
    if args[0].requires_grad:
        raise NotImplementedError("no gradients")
    return true(self, *args)


FAULTS = {stale: "values", off_in_backward: "values", drawing: "random state", wider: "dtype"}
FAULTS[refusing] = "raises NotImplementedError"


@pytest.mark.parametrize(("fault", "kind"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_seen(fault: Any, kind: str, planted: Any) -> None:
    planted(fault)
    assert kind in kinds({}, {"write": "p.data.mul_"})


# Weights of size one and many steps: what one rounding changes grows to a ten-thousandth and more.
GROWING = {
    "float32": {"num_layers": 3, "hidden_size": 23, "proj_size": 5},
    "float64": {"num_layers": 1, "hidden_size": 32, "proj_size": 17, "dtype": "float64"},
}


@pytest.mark.parametrize("options", GROWING.values(), ids=GROWING)
def test_rounding_may_grow_as_far_as_that_of_the_equations(options: Any, planted: Any) -> None:
    def coarser(true: Any, self: Any, x: Any, *hx: Any) -> Any:
        """Its input is one unit in the last place off."""
        return true(self, x * (1 + torch.finfo(x.dtype).eps), *hx)

    planted(coarser)
    steps = [{"write": "nn.init on p.data", "shape": "long"}] * 5
    assert kinds(*steps, options=parts.Options(**options)) == set()


@pytest.mark.parametrize("options", GROWING.values(), ids=GROWING)
def test_a_fault_is_seen_beside_rounding_that_grows(options: Any, planted: Any) -> None:
    def off(true: Any, self: Any, x: Any, *hx: Any) -> Any:
        """Its input is a thousand units in the last place off."""
        return true(self, x * (1 + 1000 * torch.finfo(x.dtype).eps), *hx)

    planted(off)
    steps = [{"write": "nn.init on p.data", "shape": "long"}] * 5
    assert "values" in kinds(*steps, options=parts.Options(**options))


@pytest.mark.parametrize(("function", "slope"), [("sigmoid", lambda y: y * (1 - y)), ("tanh", lambda y: 1 - y * y)])
def test_slopes_of_rounded_activations_are_those_of_what_was_rounded_to(function: str, slope: Any) -> None:
    z = torch.linspace(-9, 9, 37, dtype=torch.float64, requires_grad=True)
    with plain_lstm.disturbed(1e-6, 0):
        y = getattr(plain_lstm, function)(z)
    assert (y / getattr(torch, function)(z) - 1).abs().nan_to_num(1e-6).min() > 0.9e-6
    (found,) = torch.autograd.grad(y.sum(), z)
    torch.testing.assert_close(found, slope(y), rtol=0, atol=4e-12)  # units squared


def test_weights_are_written_on_all_sides_where_the_call_before_raises_on_some(planted: Any) -> None:
    def refusing_once(true: Any, self: Any, *args: Any) -> Any:
        if self.__dict__.setdefault("calls", []) or args[0].numel() == 0:
            return true(self, *args)
        self.__dict__["calls"].append(1)
        raise NotImplementedError("not now")

    planted(refusing_once)
    steps = ({"derivative": "weights written before backward"}, {}, {})
    assert kinds(*steps) == {"raises NotImplementedError"}


def test_a_failing_program_is_shrunk_to_what_makes_it_fail(planted: Any) -> None:
    planted(stale)
    steps = ({"context": "no_grad", "derivative": "none"}, {"write": "p.data.mul_", "shape": "one step"}, {})
    program = Program(
        1,
        parts.Options(input_size=7, num_layers=2),
        parts.BY_CLASS,
        "in a Sequential",
        ("eval",),
        steps=tuple(Step(k, **named) for k, named in enumerate(steps)),
    )
    small = fuzz_torch.shrink(program, "values")
    assert small.options == parts.Options()
    assert (small.place, small.treatments) == (parts.PLACES.plain, ())
    assert [step.write for step in small.steps] == ["nothing", "p.data.mul_"]


def test_a_process_that_dies_is_a_failure_and_the_rest_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    dying = next(n for n in range(1000) if fuzz_torch.is_about_arguments(fuzz_torch.seed_of(0, n)))
    report = fuzz_torch.Report()

    class Pipe:
        """Says what a worker says that dies while ours runs."""

        said = [dying, "torch", "ours"]

        def poll(self, seconds: float) -> bool:
            return True

        def recv(self) -> Any:
            if not self.said:
                raise EOFError
            return self.said.pop(0)

    assert fuzz_torch._follow(Pipe(), report, lambda failure: None) == "ours"  # type: ignore[arg-type]
    assert report.programs == dying
