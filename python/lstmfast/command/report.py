"""`lstmfast report`: the page about a run, from its arguments to the file.

Refuses to analyse (see `lstmfast.report`). Whatever can be wrong with the file is found before the work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lstmfast import _streams as streams
from lstmfast import inspection
from lstmfast.command.options import ReportOptions, parse, set_up
from lstmfast.report import page
from lstmfast.report.passage import own_passage, passage_of, spelling
from lstmfast.text.sources import CACHE_NAME
from lstmfast.training import checkpoint
from lstmfast.training.run_folder import RunFolder, checkpoint_of, load_model
from lstmfast.training.sampler import Sampler


def report(argv: Sequence[str]) -> int:
    """Write a page about a trained model; its path goes to standard output."""
    options = parse(ReportOptions, "report", argv)
    if options.length < 1:
        raise ValueError(f"length must be 1 or more, got {options.length}")
    if (options.fold or options.encoding) and not options.text:
        raise ValueError("--fold and --encoding say how to read a TEXT; a run's own text is read as it was learnt")
    out = Path(options.out)
    _check_file(out, overwrite=options.overwrite)
    model, learnt, config = load_model(options.run)
    set_up(options, config)
    vocabulary = spelling(learnt)
    if options.text:
        fold, encoding = options.fold or config.data.fold, options.encoding or config.data.encoding
        passage = passage_of(options.text, vocabulary, options.length, fold=fold, encoding=encoding)
    else:
        path = checkpoint_of(options.run)
        fingerprint = checkpoint.read_header(path).metadata.get("text_fingerprint")
        cache = path.parent.parent / CACHE_NAME
        passage = own_passage(vocabulary, config, options.length, cache, fingerprint=fingerprint)
    for note in passage.notes:
        streams.tell(note)
    beginning = int(vocabulary.encode(Sampler(model, vocabulary).beginning())[0])
    folder = RunFolder(options.run)
    run = page.Run(
        Path(options.run).resolve().name, config, folder.read_metrics() if folder.path.is_dir() else (),
        folder.read_samples() if folder.path.is_dir() else "", inspection.inspect(options.run),
    )
    contents = page.to_html(page.contents(model, vocabulary, passage, beginning, run))
    try:
        checkpoint.replace_file(out, contents)
    except OSError as error:
        raise OSError(f"{out} cannot be written: {error.strerror}") from error
    streams.tell(f"{len(contents) / 1e6:.1f} MB; open it in a browser")
    print(out)
    return 0


def _check_file(out: Path, *, overwrite: bool) -> None:
    """Raise OSError or FileExistsError if the page cannot be written there, before anything else is done."""
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: name a file with --out")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists: give --overwrite to replace it, or another --out")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise OSError(f"{out} cannot be written: {error.strerror}") from error
