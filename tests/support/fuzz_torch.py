"""The fuzzer of lstmfast.torch: random programs, run with torch.nn's modules and with ours, must do the same.

    python tests/support/fuzz_torch.py --programs 10000 --seed 1 [--seconds 60] [--only SEED] [--ignore KIND ...]

A program follows from one integer: module, treatments, and some calls with weights written between them, all drawn from
the tables of `fuzz_parts`; or a call with wrong arguments (`fuzz_arguments`). Where the two sides differ, the equations
in float64 (`plain_lstm`) decide: ours may work where torch raises, if it is right, and may be as far off as a rounding
of every number grows in this program. Programs run in a process of their own, which may die or hang; that is a failure
too. Failing programs are shrunk part by part before they are shown.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):  # a script: its folder stands on the path, and not that of the tests
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from support import fuzz_arguments, plain_lstm
from support import fuzz_parts as parts
from support.fuzz_parts import Options, Task, World
from support.fuzz_trace import Difference, Trace, Undecided, compare

HANG_S = 60  # a program takes some milliseconds
WRONG_ARGUMENTS = 0.15  # share of the programs


# --- programs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A call, and the writing of weights before it. The names are those of the tables, the defaults the plain ones."""

    seed: int
    write: str = parts.WRITES.plain
    shape: str = parts.SHAPES.plain
    layout: str = parts.LAYOUTS.plain
    state: str = parts.STATES.plain
    context: str = parts.CONTEXTS.plain
    change: str = parts.CHANGES.plain
    derivative: str = parts.DERIVATIVES.plain
    x_has_gradient: bool = True
    zeroes_gradients: bool = True
    module: int = 0


@dataclass(frozen=True)
class Program:
    """What follows from a seed."""

    seed: int
    options: Options = Options()
    made: str = parts.MADE.plain
    place: str = parts.PLACES.plain
    treatments: tuple[str, ...] = ()
    modules: int = 1
    steps: tuple[Step, ...] = ()

    def describe(self) -> str:
        """What is not plain of it, for people."""
        lines = [
            f"{self.made}; {'LSTMCell' if self.options.cell else 'LSTM'} {_unlike(self.options, Options())}".strip()
        ]
        if self.place != parts.PLACES.plain:
            lines[0] += f", {self.place}"
        if self.modules > 1:
            lines[0] += f", {self.modules} modules"
        lines += [f"before the calls: {name}" for name in self.treatments]
        for number, step in enumerate(self.steps, 1):
            lines.append(f"call {number}: {_unlike(step, Step(step.seed)) or 'plain'}")
        return "\n".join(lines)

    def signature(self) -> str:
        """The same for failing programs that differ in sizes only."""
        names = [self.made, self.place, *self.treatments]
        for step in self.steps:
            names += [step.write, step.shape, step.layout, step.state, step.context, step.change, step.derivative]
        plain = {t.plain for t in (parts.WRITES, parts.PLACES, parts.SHAPES, parts.LAYOUTS, parts.STATES)}
        plain |= {t.plain for t in (parts.CONTEXTS, parts.CHANGES, parts.DERIVATIVES, parts.MADE)}
        return " | ".join(dict.fromkeys(name for name in names if name not in plain)) or "plain"

    @property
    def unit(self) -> float:
        """The machine epsilon of the lowest precision that something in it rounds to."""
        dtypes = [parts.DTYPES[self.options.dtype]]
        entries = [parts.TREATMENTS[name] for name in self.treatments]
        entries += [parts.CONTEXTS[step.context] for step in self.steps]
        dtypes += [entry.lowest for entry in entries if entry.lowest is not None]
        if "bfloat16 and back" in self.treatments:
            dtypes.append(torch.float32)
        return max(torch.finfo(dtype).eps for dtype in dtypes)


def _unlike(value: Any, plain: Any) -> str:
    """The fields of a dataclass that are not the plain one's."""
    said = []
    for field in dataclasses.fields(value):
        mine = getattr(value, field.name)
        if mine != getattr(plain, field.name):
            said.append(f"{field.name}={mine!r}")
    return ", ".join(said)


def draw(seed: int) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    options = parts.draw_options(rng)
    drawn = [parts.TREATMENTS.draw(rng, options) for _ in range(rng.choice([1, 1, 2]))]
    treatments = tuple(name for name in drawn if name != parts.TREATMENTS.plain)
    modules = 2 if rng.random() < 0.15 else 1
    made, place = parts.MADE.draw(rng, options), parts.PLACES.draw(rng, options)
    steps = [_draw_step(rng, options, treatments, number, modules) for number in range(rng.randint(2, 6))]
    return Program(
        seed,
        options,
        made,
        place,
        treatments,
        modules,
        tuple(replace(s, zeroes_gradients=True) if _follows_wrong(steps[:k]) else s for k, s in enumerate(steps)),
    )


def _follows_wrong(steps: Sequence[Step]) -> bool:
    """Whether gradients of an earlier step are wrong, in torch too, so that nothing may be added to them."""
    return any(
        parts.CHANGES[step.change].is_uncounted or step.derivative == "weights written before backward"
        for step in steps
    )


def _draw_step(rng: random.Random, options: Options, treatments: tuple[str, ...], number: int, modules: int) -> Step:
    context = parts.CONTEXTS.draw(rng, options)
    derivative = parts.DERIVATIVES.draw(rng, options, gradless=parts.CONTEXTS[context].gradless)
    step = Step(
        seed=rng.getrandbits(32),
        write=parts.WRITES.draw(rng, options) if number else parts.WRITES.plain,
        shape=parts.SHAPES.draw(rng, options),
        layout=parts.LAYOUTS.draw(rng, options),
        state=parts.STATES.draw(rng, options),
        context=context,
        change=parts.CHANGES.draw(rng, options),
        derivative=derivative,
        x_has_gradient=rng.random() < 0.7,
        zeroes_gradients=rng.random() < 0.6,
        module=rng.randrange(modules),
    )
    return _with_meaning(step, treatments)


def _with_meaning(step: Step, treatments: tuple[str, ...]) -> Step:
    """The same where its parts go together, so that one result is right; else with some of them made plain."""
    shape, context, change = parts.SHAPES[step.shape], parts.CONTEXTS[step.context], parts.CHANGES[step.change]
    if parts.DERIVATIVES[step.derivative].is_transform:
        if shape.is_packed:  # torch has no rules to transform the packing
            step = replace(step, shape=parts.SHAPES.plain)
        if step.context == "inference_mode":  # tensors made outside may not be wrapped inside
            step = replace(step, context="no_grad")
    if shape.is_ours and step.derivative.startswith("func."):  # nor to pad what comes out of it
        step = replace(step, shape=parts.SHAPES.plain)
    if shape.is_ours and any(parts.TREATMENTS[name].sees_arguments for name in treatments):
        step = replace(step, shape=parts.SHAPES.plain)
    elif shape.is_ours and step.layout == "a subclass of Tensor":
        step = replace(step, layout=parts.LAYOUTS.plain)
    loses_class = shape.is_packed or "checkpoint" in step.context
    if loses_class and step.layout == "a subclass of Tensor":
        step = replace(step, layout=parts.LAYOUTS.plain)
    if context.is_concurrent and step.derivative == "vmap over weights":  # threads share what functional_call exchanges
        step = replace(step, context=parts.CONTEXTS.plain)
    if shape.is_packed and shape.is_ours:  # packing copies: torch's caller may write into what ours holds, in one dtype
        step = replace(step, change=parts.CHANGES.plain)
        if context.lowest is not None:
            step = replace(step, context=parts.CONTEXTS.plain)
    if step.shape == "batch 0" and step.derivative == "gradients, batched":
        # autograd's vmap forgets the batch of operations on no numbers: gradients come expanded
        step = replace(step, change=parts.CHANGES.plain)
    if step.derivative == "weights written before backward":  # one write at a time
        step = replace(step, change=parts.CHANGES.plain)
    if context.is_concurrent or (change.is_uncounted and context.lowest is not None):
        # written by several threads, or to what autocast may have copied
        step = replace(step, change=parts.CHANGES.plain)
    return step


# --- running them -----------------------------------------------------------------------------------------------------


class Run:
    """A program on one side: "torch", "ours" or "right"."""

    def __init__(self, program: Program, side: str) -> None:
        self.program = program
        self.world = World(side, program.options, program.made, program.seed)
        self.is_ready = self._tried(self._prepare)

    def take(self, number: int) -> bool:
        """Do this call; whether it came to its end."""
        self.world.trace.begin(f"call {number + 1}")
        return self._tried(lambda: _take(self.world, self.program.steps[number]))

    def end(self) -> None:
        """Look at the modules once more."""
        self.world.trace.begin("the module at the end")
        self._tried(lambda: _record_modules(self.world))

    def forget(self) -> None:
        """Drop what calls leave to the next ones: after an error on one side alone the others have something else."""
        self.world.state = None
        for holder in self.world.holders:
            holder.root.zero_grad()

    def _tried(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:
            self.world.trace.fail(error)
            return False
        return True

    def _prepare(self) -> None:
        world, program = self.world, self.program
        first, last = parts.MADE[program.made].build
        for _ in range(program.modules):
            world.holders.append(parts.Holder(parts.PLACES[program.place].build(world)))
        for holder in world.holders:
            if world.side == "ours":
                first(world, holder)
            for name in program.treatments:
                parts.TREATMENTS[name].build(world, holder)
            if world.side == "ours":
                last(world, holder)
        _record_modules(world)


def _record_modules(world: World) -> None:
    for holder in world.holders:
        if not world.ours_by_class:
            world.record("class", f"{type(holder.lstm).__module__}.{type(holder.lstm).__qualname__}")
        world.record("repr", repr(holder.root))
        world.record("state_dict keys", list(holder.root.state_dict()))
    world.record("random state", parts.random_state())


def _take(world: World, step: Step) -> None:
    world.reseed(step.seed)
    holder = world.holders[step.module % len(world.holders)]
    try:
        with parts.thawed(world):
            parts.WRITES[step.write].build(world, holder)
    except Exception as error:
        raise Undecided(f"weights cannot be written so: {error}") from error
    if step.zeroes_gradients:
        holder.root.zero_grad()
    world.allows_subclasses = not parts.SHAPES[step.shape].is_ours
    shape = parts.SHAPES[step.shape].build(world)
    x = parts.draw_tensor(world, step.layout, shape.x, holder.dtype, step.x_has_gradient)
    states = parts.STATES[step.state].build(world, shape.batch, holder.dtype)
    compose = parts.function_of(world, shape, holder, step.change, step.context)
    parts.DERIVATIVES[step.derivative].build(Task(world, holder, compose, [x, *states]))
    world.record("random state", parts.random_state())


def check(program: Program, at: Callable[[str], None] = lambda side: None) -> list[Difference]:
    """How ours differs from torch's in it. at: is told which side is about to run."""

    def do(side: str, act: Callable[[], Any]) -> Any:
        at(side)
        return act()

    torchs, ours = (do(side, functools.partial(Run, program, side)) for side in ("torch", "ours"))
    forgot = set()
    if torchs.is_ready and ours.is_ready:
        for number in range(len(program.steps)):
            fine = [do(one.world.side, functools.partial(one.take, number)) for one in (torchs, ours)]
            if not all(fine):
                forgot.add(number)
                torchs.forget()
                ours.forget()
            if any(isinstance(error, Undecided) for one in (torchs, ours) for error in one.world.trace.errors.values()):
                break  # weights may be written on one side alone from here on
        torchs.end()
        ours.end()

    def right() -> Trace:
        one = Run(program, "right")
        for number in range(len(program.steps) if one.is_ready else 0):
            one.take(number)
            if number in forgot:
                one.forget()
        return one.world.trace

    def disturbed(seed: int) -> Trace:
        unit = min(program.unit, torch.finfo(torch.float32).eps)  # ours computes lower ones in float32
        with plain_lstm.disturbed(unit, seed):
            return right()

    at("right")
    terms = program.options.input_size + program.options.hidden_size + 32
    return compare(torchs.world.trace, ours.world.trace, right, unit=program.unit, terms=terms, disturbed=disturbed)


def shrink(program: Program, kind: str, at: Callable[[str], None] = lambda side: None) -> Program:
    """The plainest program that still differs in this way: parts are left out, or made plain, one after the other."""
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(program):
            if any(difference.kind == kind for difference in check(smaller, at)):
                program, changed = smaller, True
                break
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for k in range(len(program.steps) if len(program.steps) > 1 else 0):
        yield replace(program, steps=program.steps[:k] + program.steps[k + 1 :])
    for k in range(len(program.treatments)):
        yield replace(program, treatments=program.treatments[:k] + program.treatments[k + 1 :])
    if program.modules > 1:
        yield replace(program, modules=1)
    yield from _plainer(program, Program(program.seed), ("made", "place"))
    for options in _plainer(program.options, Options(), [f.name for f in dataclasses.fields(Options)]):
        if not options.proj_size or options.proj_size < options.hidden_size:
            yield replace(program, options=options)
    for k, step in enumerate(program.steps):
        for plainer in _plainer(step, Step(step.seed), [f.name for f in dataclasses.fields(Step)]):
            yield replace(program, steps=(*program.steps[:k], plainer, *program.steps[k + 1 :]))


def _plainer(value: Any, plain: Any, names: Any) -> Iterator[Any]:
    """A dataclass with one field made plain."""
    for name in names:
        if getattr(value, name) != getattr(plain, name):
            yield replace(value, **{name: getattr(plain, name)})


# --- failures ---------------------------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """kind and signature are the same for like failures; text: all that is known, for people."""

    seed: int
    kind: str
    signature: str
    text: str


def failures_of(
    seed: int, ignored: frozenset[str], at: Callable[[str], None] = lambda side: None, *, torch_dies: bool = False
) -> list[Failure]:
    """Run the program of a seed; every kind of difference in it, each with the plainest program that has it."""
    if is_about_arguments(seed):
        call = fuzz_arguments.draw(seed)
        found = fuzz_arguments.check(call, at, torch_dies=torch_dies)
        return [_failure(seed, one, call) for one in found if one.kind not in ignored]
    program, failures = draw(seed), []
    for one in [] if torch_dies else check(program, at):
        if one.kind not in ignored:
            small = shrink(program, one.kind, at)
            one = next((found for found in check(small, at) if found.kind == one.kind), one)
            failures.append(_failure(seed, one, small))
    return failures


def program_of(seed: int) -> Program | fuzz_arguments.Call:
    """The program or the call of a seed."""
    return fuzz_arguments.draw(seed) if is_about_arguments(seed) else draw(seed)


def is_about_arguments(seed: int) -> bool:
    """Whether the program of this seed is a call with wrong arguments."""
    return random.Random(~seed).random() < WRONG_ARGUMENTS


def _failure(seed: int, found: Difference, program: Program | fuzz_arguments.Call) -> Failure:
    again = f"again: python tests/support/fuzz_torch.py --only {seed}"
    text = f"seed {seed}: {found.kind}\n{program.describe()}\n{found.text}\n{again}"
    return Failure(seed, found.kind, program.signature(), text)


def seed_of(first: int, number: int) -> int:
    """The seed of a program in a run of many: runs of other first seeds share none."""
    return int.from_bytes(hashlib.blake2s(f"{first}/{number}".encode(), digest_size=4).digest(), "little")


# --- many of them, in a process that may die --------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to run: programs of a run with this seed, until there were so many or time is up. only: this one instead."""

    seed: int = 0
    programs: int = 10**9
    seconds: float | None = None
    only: int | None = None
    ignored: frozenset[str] = frozenset()  # kinds

    def seed_of(self, number: int) -> int:
        """The seed of a program."""
        return seed_of(self.seed, number) if self.only is None else self.only


@dataclass
class Report:
    """What a run found. failures: the first of every kind and signature; counts: how many there were of each."""

    programs: int = 0
    torch_died: int = 0
    failures: dict[tuple[str, str], Failure] = dataclasses.field(default_factory=dict)
    counts: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)

    def add(self, failure: Failure) -> bool:
        """Count it; whether there was none like it."""
        key = failure.kind, failure.signature
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.failures.setdefault(key, failure) is failure


def fuzz(plan: Plan, tell: Callable[[Failure], None] = lambda failure: None) -> Report:
    """Run the plan. tell: is given every failure of a kind and signature not seen before."""
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["torch", "lstmfast.torch"])
    report, torch_dies = Report(), False
    end = None if plan.seconds is None else time.monotonic() + plan.seconds
    programs = plan.programs if plan.only is None else 1
    while report.programs < programs and (end is None or time.monotonic() < end):
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(there, plan, report.programs, programs, end, torch_dies))
        worker.start()
        there.close()
        ended = _follow(here, report, tell)
        if ended == "hangs":
            worker.kill()
        worker.join()
        if ended == "done":
            break
        torch_dies = ended == "torch" and not torch_dies
        if torch_dies:  # the same once more, without torch's side
            report.torch_died += 1
            continue
        seed = plan.seed_of(report.programs)
        report.programs += 1
        kind = "hangs" if ended == "hangs" else f"dies, exit status {worker.exitcode}"
        failure = _failure(seed, Difference(kind, f"while {ended} ran"), program_of(seed))
        if report.add(failure):
            tell(failure)
    return report


def _follow(pipe: Any, report: Report, tell: Callable[[Failure], None]) -> str:
    """Read what a worker says until it is "done", "hangs", or died: then the side that ran."""
    side = ""
    try:
        while pipe.poll(HANG_S):
            message = pipe.recv()
            if message is None:
                return "done"
            if isinstance(message, Failure):
                if report.add(message):
                    tell(message)
            elif isinstance(message, int):
                report.programs, side = message, ""
            else:
                side = message
        return "hangs"
    except EOFError:
        return side


def _work(pipe: Any, plan: Plan, start: int, programs: int, end: float | None, torch_dies: bool) -> None:
    """In a worker: run programs from number `start` on, say which one runs and what failed.

    torch_dies: in the first of them.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    number = start
    while number < programs and (end is None or time.monotonic() < end):
        pipe.send(number)
        for failure in failures_of(plan.seed_of(number), plan.ignored, pipe.send, torch_dies=torch_dies):
            pipe.send(failure)
        torch_dies = False
        number += 1
    pipe.send(number)
    pipe.send(None)


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run from the command line; 1 where something failed."""
    parser = argparse.ArgumentParser(description="Random programs: lstmfast.torch beside torch.nn.")
    parser.add_argument("--programs", type=int, default=Plan.programs, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the whole run")
    parser.add_argument(
        "--seconds", type=float, help="stop after this time; 60 if neither this nor --programs is given"
    )
    parser.add_argument("--only", type=int, metavar="SEED", help="run the program of this seed alone")
    parser.add_argument("--ignore", nargs="*", default=[], metavar="KIND", help='kinds not to look at, as "class"')
    parser.add_argument("--brief", action="store_true", help="a line for every kind of failure, and no more")
    asked = parser.parse_args()
    seconds = 60.0 if asked.seconds is None and asked.programs == Plan.programs else asked.seconds
    plan = Plan(asked.seed, asked.programs, seconds, asked.only, frozenset(asked.ignore))
    if plan.only is not None:
        print(program_of(plan.only).describe(), end="\n\n")
    start = time.monotonic()
    report = fuzz(plan, lambda failure: None if asked.brief else print(failure.text, end="\n\n", flush=True))
    for key, count in sorted(report.counts.items(), key=lambda item: (item[0][0], -item[1])):
        print(f"{count:6} {key[0]}: {key[1]}   (seed {report.failures[key].seed})")
    took = time.monotonic() - start
    print(
        f"seed {asked.seed}: {report.programs} programs in {took:.0f} s, {report.programs / took:.0f} a second; "
        f"{len(report.failures)} kinds of failure; torch itself died in {report.torch_died}"
    )
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
