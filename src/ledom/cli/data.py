"""Commands that create training data: tokenizers, token stores, and augmented problems."""

from __future__ import annotations

import logging
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledom.cli import options
from ledom.cli.display import log, note
from ledom.cli.progress import track, track_tokenizing
from ledom.core.errors import InputError
from ledom.core.files import writing
from ledom.core.options import key_values
from ledom.core.records import Problem, Record, write_records

if TYPE_CHECKING:
    from ledom.data.store import TokenStore

Texts = Annotated[
    list[str],
    typer.Argument(
        help="Files or folders of JSONL, Parquet or text (.gz, .zst too), or "
        "hub:NAME,config=...,split=..."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help="jsonl, parquet, text (one document per file) or lines. Default: by file name."
    ),
]
TokenizerFile = Annotated[
    Path, options.path_option(help="A tokenizer.json, or its folder; see ledom train-tokenizer.")
]
TextKey = Annotated[str, typer.Option(help="The key, or column, that holds the text.")]

_limit_option = partial(typer.Option, min=0, max=1000)
_MOST_TASKS = 100_000
_VARIED = ("train", "wrong", "valid")  # the files of ledom augment


def train_tokenizer(
    documents: Texts,
    vocab_size: Annotated[int, typer.Option(help="Size of the vocabulary, EOS included.")] = 2048,
    split_digits: Annotated[bool, typer.Option(help="Make every digit a separate token.")] = True,
    num_documents: Annotated[
        int | None, options.count_option(help="Read only the first N documents. Default: all.")
    ] = None,
    format: Format = None,
    text_key: TextKey = "text",
    out: Annotated[Path, options.out_folder("Folder for tokenizer.json.")] = Path(
        "ledom-tokenizer"
    ),
    threads: options.Threads = None,
) -> None:
    """Train a byte-level BPE tokenizer on documents.

    Example: ledom train-tokenizer corpus/ --vocab-size 32000 --out tokenizer
    """
    from ledom.data.documents import open_documents
    from ledom.text.tokenizer import refuse_to_replace
    from ledom.text.tokenizer import train_tokenizer as train

    refuse_to_replace(out)
    given = open_documents(documents, format, text_key)
    note(*given.notes)
    given.check()
    texts = islice(given.texts(), num_documents)
    first = [*islice(texts, 1)]
    if not first:
        raise InputError(f"{', '.join(documents)}: there are no documents to train on")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    counted = track(chain(first, texts), "documents", 0, num_documents)
    read = count()
    seen = (text for text, _ in zip(counted, read, strict=False))
    made = train(seen, vocab_size, split_digits)
    made.save(out)
    found = next(read)
    if num_documents is not None and found < num_documents:
        note(f"--num-documents is {num_documents}, but there are only {found}")
    if made.vocab_size < vocab_size:
        note(f"--vocab-size is {vocab_size}; these documents have no more pairs to merge")
    log(f"a tokenizer of {made.vocab_size} tokens: {out / 'tokenizer.json'}")


def tokenize(
    context: typer.Context,
    documents: Texts,
    tokenizer: TokenizerFile,
    eos_token: Annotated[
        str | None,
        typer.Option(help="The token after each document. Default: the tokenizer's own."),
    ] = None,
    format: Format = None,
    text_key: TextKey = "text",
    executor: Annotated[str, typer.Option(help="local, slurm or ray.")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Concurrent tasks, one core each. Default: all cores; on a cluster, all tasks.",
        ),
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_TASKS,
            help="Number of shards. Default: from the size of the documents.",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of sbatch, such as partition=cpu or mem-per-cpu=4G (repeatable)."
        ),
    ] = None,
    out: Annotated[
        Path, options.out_folder("Folder for the store. Finished shards there are kept.")
    ] = Path("ledom-tokens"),
    threads: options.Threads = None,
) -> None:
    """Tokenize documents into a token store, for training in either direction.

    A recipe names the store in data.sources.

    On a cluster: --executor slurm --slurm partition=cpu --slurm time=4:00:00 --tasks 500

    Example: ledom tokenize corpus/ --tokenizer tokenizer --workers 8 --out tokens
    """
    from ledom.data.documents import open_documents
    from ledom.data.tokenize import Execution, tokenize
    from ledom.text.tokenizer import Tokenizer

    options.refuse_unused(context, (executor != "slurm", f"the executor is {executor}", ["slurm"]))
    sbatch = key_values([option.lstrip("-") for option in slurm or []], "--slurm")
    given = open_documents(documents, format, text_key)
    note(*given.notes)
    with track_tokenizing() as on_progress:
        execution = Execution(executor, workers, tasks, sbatch, on_progress)
        store = tokenize(given, Tokenizer.load(tokenizer, eos_token), out, execution)
    _log_store(store, out)


def _log_store(store: TokenStore | None, out: Path) -> None:
    if store is None:
        log(f"submitted; the last job to finish writes {out / 'manifest.json'}")
        log(f"if a job fails, {out / 'tasks' / 'slurm_logs'} says why; the same command repeats it")
        return
    counts = store.manifest
    log(
        f"documents: {counts.num_documents:,}, tokens: {counts.num_tokens:,}, "
        f"shards: {len(store.shards)}; store: {out}"
    )


def augment(
    problems: Annotated[
        Path, options.path_argument(help="A JSONL file of problems with solutions.")
    ],
    variants: Annotated[
        int, _limit_option(help="Maximum number of variants with other numbers per problem.")
    ] = 6,
    wrong: Annotated[
        int, _limit_option(help="Maximum number of wrong solutions per problem or variant.")
    ] = 4,
    false_results: Annotated[
        int,
        _limit_option(
            help="Maximum number of further wrong solutions, each with one false equation."
        ),
    ] = 0,
    out: Annotated[Path, options.out_folder("Folder for the results.")] = Path("ledom-augment"),
    seed: options.Seed = 0,
    threads: options.Threads = None,
) -> None:
    """Create training pairs from solved problems: variants with other numbers, wrong solutions.

    Example: ledom augment gsm8k/train.jsonl --out varied
    """
    from ledom.data.augment import augment as run
    from ledom.data.prepare import DataConfig, read_split

    files = [f"{name}.jsonl" for name in _VARIED]
    options.check_results(out, *files, read=[problems])
    warn = logging.getLogger("ledom").warning
    given, held_out = read_split(DataConfig(train=str(problems)), warn)
    kept = [record for record in given if isinstance(record, Problem)]
    if not kept:
        raise InputError("these are documents; give problems with solutions", path=problems)
    shown = partial(track, name="problems", done=0, total=len(kept))
    with options.results_folder(out):
        varied, candidates = run(kept, variants, wrong, false_results, seed, shown)
        made: tuple[list[Record], ...] = [*varied], [*candidates], [*held_out]
        for name, records in zip(files, made, strict=True):
            write_records(out / name, records)
            log(f"records in {out / name}: {len(records)}")
