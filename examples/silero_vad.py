"""Find speech in recordings with Silero's voice-activity model, in NumPy and one call of the LSTM.

The model is Silero VAD 6 for 16,000 samples a second: the magnitudes of a short-time Fourier transform, four
convolutions, an LSTM of 128 units, one logit; a probability of speech for each chunk of 512 samples (32 ms). The
weights are those of the package silero-vad (Silero Team, MIT licence): `pip install --no-deps 'silero-vad>=6.2.3'`.
They are read from its ONNX file (`pip install onnx`); neither PyTorch nor ONNX Runtime is needed. The package's
.safetensors file, which --weights can name, needs no onnx, but in 6.2.3 it holds other weights than the ONNX files.

Everything before the LSTM is the same for each chunk, hence matrix products over blocks of chunks. The LSTM then reads
all chunks of all recordings in one call of `lf.lstm`. It releases Python's global lock, as the products do, so that
threads of a server do not wait for each other. A state carries streams over any cut between two chunks.

If ONNX Runtime is installed, the package's model runs there too, with one thread: chunk by chunk, as the package calls
it, and in the package's newer way, up to 512 chunks of one recording in a call. The table compares results and times.

A WAV file needs 16,000 samples a second or a multiple, of which every k-th is read, as in the package. Without a file
the example makes its own sounds: noise, and in it syllables of a synthetic voice.
"""

from __future__ import annotations

import importlib.util
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from _shared import Options, Results, print_table

import lstmfast as lf

WEIGHTS = "silero_vad_16k_sequence.onnx"
RATE, CHUNK, CONTEXT, UNITS = 16_000, 512, 64, 128
WINDOW, HOP = 256, 128  # of the Fourier transform
FOURIER, OUT = (258, 1, WINDOW), (1, UNITS, 1)  # cosines and sines of 129 frequencies; the logit
CONVOLUTIONS = (128, 129, 3), (64, 128, 3), (64, 64, 3), (128, 64, 3)
STRIDES = 1, 2, 2, 1
# The first two add large terms of both signs: in float32, a probability was off by up to 1.5e-5.
PRECISION = "float64", "float64", "float32", "float32"
PAUSE = 4  # chunks without speech that end a span
SYLLABLES = 4  # a second, of the synthetic voice
VOWELS = np.array([(730, 1090), (270, 2290), (300, 870), (530, 1840), (570, 840)])  # Hz; Peterson & Barney 1952, men
BLOCK = 256  # chunks; the arrays of a block stay in the cache

Array = npt.NDArray[Any]


class State(NamedTuple):
    """What a stream carries from chunk to chunk: its last samples [streams, 64], and h and c [streams, 128]."""

    context: Array
    h: Array
    c: Array


class VoiceActivity:
    """The model for one or many streams. Holds weights only: threads can share one."""

    def __init__(self, path: Path) -> None:
        contents = lf.layouts.read(path)
        names = {values.shape: name for name, values in contents.arrays.items() if name.endswith((".weight", "buffer"))}
        if not contents.lstms or not {FOURIER, *CONVOLUTIONS, OUT} <= names.keys():
            raise ValueError(f"{path} holds other weights than those of Silero VAD for 16,000 samples a second")

        def weight_and_bias(shape: tuple[int, ...]) -> tuple[Array, Array]:
            return contents.arrays[names[shape]], contents.arrays[names[shape].replace("weight", "bias")]

        self.fourier = contents.arrays[names[FOURIER]][:, 0].T.copy()
        self.convolutions = []
        for dtype, (weight, bias) in zip(PRECISION, map(weight_and_bias, CONVOLUTIONS), strict=True):
            self.convolutions.append((weight.transpose(2, 1, 0).astype(dtype), bias.astype(dtype)))  # [tap, in, out]
        cell = contents.lstms[0].weights().cells[0].with_one_bias(0.0)
        self.kernel, self.bias = cell.kernel, cell.bias
        weight, self.out_bias = weight_and_bias(OUT)
        self.out = weight[0, :, 0]

    def __call__(self, audio: Array, state: State | None = None) -> tuple[Array, State]:
        """Probabilities of speech [streams, chunks] of audio [streams, 512*chunks], and the state after it."""
        streams, chunks = len(audio), audio.shape[1] // CHUNK
        if audio.shape != (streams, chunks * CHUNK):
            raise ValueError(f"audio must be [streams, 512*chunks], got {audio.shape}; fill the last chunk with zeros")
        context, h, c = state or State(*(np.zeros((streams, size), "float32") for size in (CONTEXT, UNITS, UNITS)))
        x = np.empty((chunks, streams, UNITS), "float32")
        for begin in range(0, chunks, per_block := max(1, BLOCK // streams)):
            piece = audio[:, begin * CHUNK : (begin + per_block) * CHUNK]
            x[begin : begin + per_block] = self._encode(piece, context)
            context = piece[:, -CONTEXT:]
        out = lf.lstm(x, self.kernel, self.bias, h, c)
        logits = np.maximum(out.h, 0, out=out.h) @ self.out + self.out_bias
        return (1 / (1 + np.exp(-logits))).T, State(context.copy(), out.h_n, out.c_n)

    def _encode(self, audio: Array, context: Array) -> Array:
        """What the LSTM reads [chunks, streams, 128] of audio [streams, 512*chunks] and the 64 samples before it."""
        streams, chunks = len(audio), audio.shape[1] // CHUNK
        rows = np.empty((chunks, streams, CONTEXT + CHUNK + CONTEXT), "float32")
        body, after = rows[..., CONTEXT:-CONTEXT], rows[..., -CONTEXT:]
        body[:] = audio.reshape(streams, chunks, CHUNK).swapaxes(0, 1)
        rows[0, :, :CONTEXT], rows[1:, :, :CONTEXT] = context, body[:-1, :, -CONTEXT:]
        after[:] = body[..., -2 : -2 - CONTEXT : -1]  # reflected at the last sample
        rows = rows.reshape(-1, rows.shape[-1])
        x = np.empty((len(rows), 4, UNITS + 1), "float32")
        for k in range(4):
            waves = rows[:, k * HOP : k * HOP + WINDOW] @ self.fourier
            waves *= waves
            np.add(waves[:, : UNITS + 1], waves[:, UNITS + 1 :], out=x[:, k])
        np.sqrt(x, out=x)  # magnitudes of 129 frequencies in each of 4 windows
        for (kernel, bias), stride in zip(self.convolutions, STRIDES, strict=True):
            x = convolve(x.astype(kernel.dtype, copy=False), kernel, stride)
            x += bias
            np.maximum(x, 0, out=x)
        return x.reshape(chunks, streams, UNITS)


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution over the places of x [rows, places, in] with kernel [3, in, out], zeros before and after.

    With so few places each is one product of a view: nothing is copied, and the zeros are not multiplied.
    """
    rows, places, outputs = len(x), x.shape[1], kernel.shape[2]
    y = np.empty((rows, (places - 1) // stride + 1, outputs), x.dtype)
    for k in range(y.shape[1]):
        begin, end = max(k * stride - 1, 0), min(k * stride + 2, places)
        taps = kernel[begin - k * stride + 1 : end - k * stride + 1]
        np.matmul(x[:, begin:end].reshape(rows, -1), taps.reshape(-1, outputs), out=y[:, k])
    return y


def synthetic_voice(seconds: float, rng: np.random.Generator) -> Array:
    """Faint noise, and in the middle half of the time syllables of a voice: [16,000*seconds] samples.

    A voice here is the harmonics of a pitch, each as strong as two formants let it be; both glide between syllables.
    """
    time_s = np.arange(int(seconds * RATE)) / RATE
    beats = np.arange(int(seconds * SYLLABLES) + 2)
    pitch = np.interp(time_s * SYLLABLES, beats, 120 + rng.uniform(-25, 25, len(beats)))
    vowels = VOWELS[rng.integers(0, len(VOWELS), len(beats))]
    formants = np.stack([np.interp(time_s * SYLLABLES, beats, column) for column in vowels.T])
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros_like(time_s)
    for harmonic in range(1, 30):
        strength = 1 / (1 + ((harmonic * pitch - formants) / 90) ** 2)
        voice += strength.sum(axis=0) * np.sin(harmonic * phase) / np.sqrt(harmonic)
    loudness = (0.1 + np.sin(np.pi * time_s * SYLLABLES) ** 2) * (abs(time_s / seconds - 0.5) < 0.25)
    return (0.1 * voice * loudness + 0.002 * rng.standard_normal(len(time_s))).astype("float32")


def read_wav(path: str) -> Array:
    """The samples of a WAV file of 16 bits, from -1 to 1: the mean of its channels, 16,000 a second."""
    try:
        with wave.open(path, "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a WAV file of whole numbers: {error}") from None
    if width != 2 or rate % RATE:
        wanted = "16 bits and a multiple of 16,000 samples a second"
        raise ValueError(f"{path} must have {wanted}, got {8 * width} and {rate:,}")
    if not raw:
        raise ValueError(f"{path} has no samples")
    samples = np.frombuffer(raw, "<i2").reshape(-1, channels).mean(axis=1, dtype="float32") / 32768
    return samples[:: rate // RATE]


def in_chunks(recordings: Sequence[Array]) -> Array:
    """Recordings as one array [streams, 512*chunks], zeros after their ends, which no earlier chunk reads."""
    chunks = max(-(-len(samples) // CHUNK) for samples in recordings)
    audio = np.zeros((len(recordings), chunks * CHUNK), "float32")
    for row, samples in zip(audio, recordings, strict=True):
        row[: len(samples)] = samples
    return audio


def spans(probabilities: Array, threshold: float) -> Iterator[tuple[float, float]]:
    """Begin and end in seconds of speech: from a chunk at the threshold until 0.1 s stay 0.15 below it."""
    begin, last = None, 0
    for chunk, probability in enumerate([*probabilities, *[0.0] * PAUSE]):
        if probability >= threshold and begin is None:
            begin = chunk
        if probability >= (threshold if begin is None else threshold - 0.15):
            last = chunk
        elif begin is not None and chunk - last >= PAUSE:
            yield begin * CHUNK / RATE, (last + 1) * CHUNK / RATE
            begin = None


def onnx_session(name: str) -> Any:
    """A model of the package in ONNX Runtime, with the package's settings: one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(package_file(name)), options, providers=["CPUExecutionProvider"])


def chunk_by_chunk(session: Any, audio: Array) -> Array:
    """Probabilities [streams, chunks] as the package computes them, all streams in one call for each chunk."""
    state, context = np.zeros((2, len(audio), UNITS), "float32"), np.zeros((len(audio), CONTEXT), "float32")
    said = []
    for begin in range(0, audio.shape[1], CHUNK):
        x = np.concatenate([context, audio[:, begin : begin + CHUNK]], axis=1)
        out, state = session.run(None, {"input": x, "state": state, "sr": np.array(RATE)})
        context = x[:, -CONTEXT:]
        said.append(out)
    return np.concatenate(said, axis=1)


def by_blocks(session: Any, audio: Array, block: int = 512) -> Array:
    """The same as the package's class for whole recordings computes them, one stream after the other."""
    said = []
    for samples in np.pad(audio, ((0, 0), (CONTEXT, 0))):
        chunks = np.lib.stride_tricks.sliding_window_view(samples, CONTEXT + CHUNK)[::CHUNK]
        h = c = np.zeros((1, 1, UNITS), "float32")
        for begin in range(0, len(chunks), block):
            out, h, c = session.run(None, {"input": chunks[begin : begin + block].copy(), "h": h, "c": c})
            said.append(out)
    return np.concatenate(said).reshape(len(audio), -1)


def shortest_ms(runs: int, functions: dict[str, Callable[[Array], Array]], audio: Array) -> dict[str, float]:
    """The shortest time of some calls of each function in milliseconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            begin = time.perf_counter()
            function(audio)
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: min(taken) for name, taken in times.items()}


def package_file(name: str) -> Path:
    """A file of the package silero-vad, which is not imported: it needs PyTorch, and has the name of this example."""
    try:
        return Path(str(distribution("silero-vad").locate_file(f"silero_vad/data/{name}")))
    except PackageNotFoundError:
        command = "pip install --no-deps 'silero-vad>=6.2.3'"
        raise ImportError(f"the weights are in the package silero-vad: {command}") from None


def example(options: Any) -> Results:
    rng = np.random.default_rng(options.seed)
    recordings = [read_wav(path) for path in options.wav]
    model = VoiceActivity(options.weights or package_file(WEIGHTS))
    names = options.wav or ["a synthetic voice"]
    audio = in_chunks(recordings or [synthetic_voice(options.seconds, rng)])
    probabilities, _ = model(audio)
    for name, said in zip(names, probabilities, strict=True):
        heard = ", ".join(f"{begin:.2f} to {end:.2f}" for begin, end in spans(said, options.threshold))
        print(f"{name}: {f'speech at {heard} s' if heard else 'no speech'}")

    audio = np.resize(audio, (options.streams, audio.shape[1])) if options.streams > 1 else audio
    ways: dict[str, Callable[[Array], Array]] = {"lstmfast, all chunks in one call": lambda audio: model(audio)[0]}
    results = {"speech": float((probabilities >= options.threshold).mean())}
    if options.weights is None and importlib.util.find_spec("onnxruntime"):
        ways["ONNX Runtime, chunk by chunk"] = partial(chunk_by_chunk, onnx_session("silero_vad.onnx"))
        ways["ONNX Runtime, up to 512 chunks in a call"] = partial(by_blocks, onnx_session(WEIGHTS))
    ours, *others = (way(audio) for way in ways.values())
    times = shortest_ms(options.runs, ways, audio)
    first, *_ = times.values()
    rows = [(name, f"{ms:.1f} ms, {1e3 * ms / ours.size:.1f} us, {ms / first:.1f}") for name, ms in times.items()]
    if others:
        results["difference"] = max(float(np.abs(ours - other).max()) for other in others)
        rows.append(("largest difference of a probability", f"{results['difference']:.1e}"))
    columns = f"{ours.size:,} chunks: time, time of a chunk, relative to the first"
    print_table(f"{len(audio)} x {audio.shape[1] / RATE:.1f} s, {columns}", rows)
    return results


def main(arguments: Sequence[str] | None = None) -> Results:
    options = Options(__doc__, steps=None, text=False)
    options.add_argument("wav", nargs="*", metavar="WAV", help="recordings; none: a synthetic voice")
    options.add_argument("--weights", type=Path, metavar="PATH", help=f"default: {WEIGHTS} of the package silero-vad")
    options.add_number("--seconds", 60, "length of the synthetic recording")
    options.add_number("--streams", 1, "streams to time, copies of the recordings")
    options.add_number("--runs", 3, "timed calls; the shortest counts")
    options.add_fraction("--threshold", 0.5, "probability from which a chunk is speech")
    return options.run(example, arguments)


if __name__ == "__main__":
    main()
