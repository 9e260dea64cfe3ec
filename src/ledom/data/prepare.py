"""Prepares a tokenizer and token stores from a recipe's data section, once for both directions.

Sources are either token stores written by `ledom tokenize` (`data.sources`), or the embedded
generator (`gsm_symbolic`) or a JSONL file of documents or of problems with solutions
(`data.train`). For the last two, stores of the same format are written here. A problem becomes the
document that its pair format renders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from ledom.core import processes
from ledom.core.errors import InputError, RecipeError
from ledom.core.files import LARGEST_SEED, check_settings, file_hash, lock_folder, write_json
from ledom.core.reading import Config, read_json, read_jsonl
from ledom.core.records import Document, Problem, read_records
from ledom.data.packing import Packing
from ledom.data.problems import GENERATOR, equations, generate_problems
from ledom.data.store import SourceRuns, TokenStore, write_store
from ledom.text.pair_format import PairFormat, Style
from ledom.text.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "DataConfig",
    "PreparedData",
    "SourceConfig",
    "check_data",
    "prepare_data",
    "read_split",
    "shortfalls",
]

_HELD_OUT_EVERY = 50
_WARN = logging.getLogger("ledom").warning
_SOLUTIONS_PER_DOCUMENT = 3  # per document of equations: about as long as a problem
_TOKENIZER_SAMPLE = 20_000  # the number of documents that a new tokenizer is trained on


class SourceConfig(Config):
    """One part of a mixture."""

    path: str
    """A folder written by `ledom tokenize`."""
    weight: PositiveFloat = 1.0
    """The source's share of the windows, relative to the other sources' weights."""


class DataConfig(Config):
    """The data section of a recipe."""

    sources: tuple[SourceConfig, ...] = ()
    """Token stores to mix, instead of `train`; `valid` must then be a token store too."""
    train: str = GENERATOR
    """`gsm_symbolic` for the embedded generator, or a JSONL file of problems or documents."""
    valid: str | None = None
    """A JSONL file for validation; by default the generator's valid split, or 2% of the file."""
    packing: Packing = "documents"
    """`documents`: a window is one document or a part of a long one; `fixed`: a window is the next
    train.seq_len tokens, across documents, for pretraining at any size."""
    mask_across_documents: bool = True
    """Whether attention stops where a document starts."""
    reset_position_ids: bool = True
    """Whether positions start at 0 where a document starts."""
    verify: bool = True
    """Whether to compare every byte with the checksums before the first step. Sizes are always
    compared."""
    num_documents: PositiveInt | None = None
    """Number of documents to draw from the generator, or maximum to read from a file."""
    num_valid: PositiveInt = 500
    """Maximum number of documents to validate on."""
    pair_format: str = PairFormat().template
    """The template that joins a problem's question and solution into one text."""
    solution_style: Style = "as written"
    """The style that a file's solutions are converted to: `as written`, `plain` (one form of
    equations and final answer), their `numbers` alone, or the `equations` among these. Candidates
    are then read in the same style."""
    tokenizer: str | None = None
    """A tokenizer.json to use; by default one is trained."""
    eos_token: str | None = None
    """The token that ends documents, if the files next to `tokenizer` name none or another."""
    vocab_size: PositiveInt = 2048
    """The size of a newly trained vocabulary."""
    equation_only_fraction: NonNegativeFloat = Field(default=0.0, lt=1)
    """The share of the generator's documents that are only equations, taken from the solutions of
    more problems: arithmetic needs far more examples than reading."""
    seed: NonNegativeInt = Field(default=0, le=LARGEST_SEED)
    """The seed of the generator."""

    @field_validator("pair_format")
    @classmethod
    def _check_pair_format(cls, template: str) -> str:
        return PairFormat(template).template  # now, since the finished model records it

    @property
    def pairs(self) -> PairFormat:
        """The format that joins a question and its solution into one text.

        >>> DataConfig(pair_format="{question} A: {solution}").pairs.render("2 + 2?", "4")
        '2 + 2? A: 4'
        """
        return PairFormat(self.pair_format, self.solution_style)


_FOR_READING = {"sources", "packing", "mask_across_documents", "reset_position_ids", "verify"}
"""The keys of `DataConfig` that decide only how stores are read. Data that was prepared with other
values of these can be used; a change of any other key is refused."""


@dataclass(frozen=True)
class Source:
    """A token store and its weight in the mixture."""

    store: TokenStore
    weight: float = 1.0


class PreparedData:
    """A tokenizer, the sources to train on, and the store to validate on.

    Raises `InputError` for a store that is damaged or was made with another tokenizer.
    """

    def __init__(self, folder: Path, config: DataConfig) -> None:
        """`folder` is where `prepare_data` writes the data of a recipe without sources."""
        tokenizer, eos_token = str(folder), None
        if named := config.sources:
            tokenizer, eos_token = config.tokenizer or named[0].path, config.eos_token
            self.sources = tuple(Source(TokenStore(s.path), s.weight) for s in named)
            self.valid = TokenStore(config.valid or "")
        else:
            self.sources = (Source(TokenStore(folder / "train")),)
            self.valid = TokenStore(folder / "valid")
        self.tokenizer = Tokenizer.load(tokenizer, eos_token)
        stores = (*(source.store for source in self.sources), self.valid)
        for store in stores:
            if store.eos_id != self.tokenizer.eos_id:
                raise InputError(
                    f"its documents end with token {store.eos_id}, the run's with "
                    f"{self.tokenizer.eos_token!r}, {self.tokenizer.eos_id}; change "
                    "data.eos_token, or tokenize again",
                    path=store.folder,
                )
            if store.manifest.tokenizer != self.tokenizer.fingerprint:
                raise InputError(
                    f"was made with a different tokenizer; tokenize again with {tokenizer}",
                    path=store.folder,
                )
        for store in stores if config.verify else ():
            store.verify(processes.rank(), processes.size())


def prepare_data(
    config: DataConfig, folder: Path, warn: Callable[..., object] = _WARN
) -> PreparedData:
    """Create the tokenizer and stores under `folder`, unless an earlier call with `config` did.

    If two processes start together, as twins do, one prepares the data while the other waits and
    logs a line now and then. With `config.sources` there is nothing to prepare. `warn` is called
    about records that are in both parts.

    >>> import tempfile
    >>> from ledom.core.records import write_records
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "documents.jsonl")
    ...     write_records(file, [Document(id=i, text="so") for i in "abc"])
    ...     data = prepare_data(DataConfig(train=str(file), vocab_size=257), Path(folder))
    ...     data.sources[0].store.manifest.num_documents, data.valid.manifest.num_documents
    (2, 1)
    """
    check_data(config)
    if config.sources:
        return PreparedData(folder, config)
    with lock_folder(folder, "prepares the data", wait=True):
        _prepare(config, folder, warn)
    return PreparedData(folder, config)


def shortfalls(config: DataConfig, data: PreparedData) -> list[str]:
    """One line per setting that asks for more data than there is, or validates on training data.

    >>> import tempfile
    >>> from ledom.core.records import write_records
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "documents.jsonl")
    ...     write_records(file, [Document(id=i, text="so") for i in "ab"])
    ...     config = DataConfig(train=str(file), num_documents=3, vocab_size=257)
    ...     shortfalls(config, prepare_data(config, Path(folder)))  # doctest: +ELLIPSIS
    ['data.num_documents is 3; .../documents.jsonl holds 2']
    """
    if config.sources:
        shards = [[shard.entry.sha256 for shard in source.store.shards] for source in data.sources]
        same = [shard.entry.sha256 for shard in data.valid.shards] in shards
        return [f"data.valid is {config.valid}, a store that is also trained on"] if same else []
    lines = []
    found = data.sources[0].store.manifest.num_documents
    if config.valid is None:
        found += data.valid.manifest.num_documents  # held out from the same file
    wanted = config.num_documents
    if config.train != GENERATOR and wanted is not None and found < wanted:
        lines.append(f"data.num_documents is {wanted}; {config.train} holds {found}")
    size = data.tokenizer.vocab_size
    if config.tokenizer is None and size < config.vocab_size:
        lines.append(
            f"data.vocab_size is {config.vocab_size}; the documents have no more pairs to merge, "
            f"so the tokenizer has {size} tokens"
        )
    return lines


def check_data(config: DataConfig) -> None:
    """Raise `RecipeError` if a key is missing or contradicts another, or `train` is a folder.

    >>> check_data(DataConfig())
    Traceback (most recent call last):
    ledom.core.errors.RecipeError: key data.num_documents is missing: the generator never ends
    """
    if config.sources:
        if config.valid is None:
            raise RecipeError(
                "key data.valid is missing: with data.sources, name a token store of other "
                "documents"
            )
        if "train" in config.model_fields_set:
            raise RecipeError(
                f"key data.train is {config.train!r} and data.sources is given too; leave one out"
            )
    elif config.train != GENERATOR and Path(config.train).is_dir():
        raise RecipeError(
            f"key data.train is {config.train!r}: a folder, expected one JSONL file; name token "
            "stores in data.sources and data.valid, and make them of other files by ledom tokenize"
        )
    elif config.train == GENERATOR and config.num_documents is None:
        raise RecipeError("key data.num_documents is missing: the generator never ends")
    elif config.eos_token is not None and config.tokenizer is None:
        raise RecipeError(
            f"key data.eos_token is {config.eos_token!r} without data.tokenizer; a tokenizer "
            "that is trained here has its own"
        )


def _prepare(config: DataConfig, folder: Path, warn: Callable[..., object]) -> None:
    named = Tokenizer.load(config.tokenizer, config.eos_token) if config.tokenizer else None
    settings = config.model_dump(mode="json", exclude=_FOR_READING) | _contents(config, named)
    marker = folder / "data.json"
    if marker.is_file():
        remedy = "give the run another name, or remove this folder"
        check_settings(read_json(marker), settings, folder, remedy)
        return
    train, valid, origins = _sources(config, warn)
    # By default, a new tokenizer is trained on the first texts.
    tokenizer = named or train_tokenizer(islice(train(), _TOKENIZER_SAMPLE), config.vocab_size)
    tokenizer.save(folder)
    write_store(folder / "train", train(), tokenizer, config.train)
    write_store(folder / "valid", valid(), tokenizer, config.valid or config.train, origins)
    write_json(marker, settings)  # last, because its existence means that the data is complete


def _contents(config: DataConfig, tokenizer: Tokenizer | None) -> dict[str, str]:
    """Hashes that replace the names of files, which may be moved but not changed."""
    named = {"train": config.train, "valid": config.valid}
    found = {
        key: f"SHA-256 {file_hash(Path(name))}"
        for key, name in named.items()
        if name is not None and Path(name).is_file()
    }
    if tokenizer is not None:
        found["tokenizer"] = f"SHA-256 {tokenizer.fingerprint}, ends with {tokenizer.eos_token}"
    return found


def _sources(
    config: DataConfig, warn: Callable[..., object]
) -> tuple[Callable[[], Iterator[str]], Callable[[], Iterator[str]], list[tuple[str, int]]]:
    """Functions that return new iterators over the training and validation texts, and the sources
    of the validation texts for their store's manifest."""
    if config.train == GENERATOR:
        count = config.num_documents
        assert count is not None  # see `check_data`
        return (
            lambda: _generated(count, config),
            lambda: _render(generate_problems("valid", config.num_valid, config.seed), config),
            [],
        )
    records, held_out = read_split(config, warn)
    runs = SourceRuns()
    for record in held_out:
        runs.add(record.source if isinstance(record, Document) else record.extra.get("source"))
    origins = runs.named("the documents to validate on")
    return lambda: _render(records, config), lambda: _render(held_out, config), origins


def read_split(
    config: DataConfig, warn: Callable[..., object] = lambda *_: None
) -> tuple[Sequence[Document | Problem], Sequence[Document | Problem]]:
    """Split a file's records into those to train on and those to validate on.

    `warn` is called about records that are in both parts.

    >>> import tempfile
    >>> from ledom.core.records import write_records
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     write_records(file.name, [Document(id=i, text="so") for i in "abc"])
    ...     train, valid = read_split(DataConfig(train=file.name))
    ...     [record.id for record in train], [record.id for record in valid]
    (['b', 'c'], ['a'])
    """
    records = _read_documents(config.train)[: config.num_documents]
    if config.valid is not None:
        left, held_out = records, _read_documents(config.valid)[: config.num_valid]
    else:
        # Every fiftieth record, so that validation covers all of a sorted file.
        held_out = records[::_HELD_OUT_EVERY][: config.num_valid]
        held_ids = {record.id for record in held_out}
        left = [record for record in records if record.id not in held_ids]
        if more := len(records) - len(left) - len(held_out):
            reason = "have the id of a record held out for validation and are not trained on"
            warn("%s: %d records %s", config.train, more, reason)
        if not left:
            raise InputError(
                "nothing is left to train on after holding out a part for validation; add records "
                "with other ids, or name a file as data.valid",
                path=config.train,
            )
    held = {*map(_asked_or_text, held_out)}
    if same := sum(_asked_or_text(record) in held for record in left):
        reason = (
            "have the text or question of a validation record, which lowers the validation loss"
        )
        warn("%s: %d records to train on %s; remove them", config.train, same, reason)
    return left, held_out


def _asked_or_text(record: Document | Problem) -> str:
    """What training and validation must not share; a question may have many solutions."""
    return " ".join((record.text if isinstance(record, Document) else record.question).split())


def _read_documents(path: str | Path) -> Sequence[Document | Problem]:
    """Read a JSONL file of documents (key `text`) or of problems with solutions."""
    _, first = next(read_jsonl(path), (0, {}))
    if "text" in first:
        return read_records(path, Document)
    return read_records(path, Problem, Problem.require_solution)


def _generated(count: int, config: DataConfig) -> Iterator[str]:
    """Training documents of the generator: problems, and some documents of equations only."""
    problems = generate_problems("train", count * _SOLUTIONS_PER_DOCUMENT, config.seed)
    rng = Random(f"drills-{config.seed}")
    for _ in range(count):
        if rng.random() >= config.equation_only_fraction:
            yield from _render([next(problems)], config)
        else:
            solutions = (p.solution or "" for p in islice(problems, _SOLUTIONS_PER_DOCUMENT))
            yield "\n".join(step for solution in solutions for step in equations(solution))


def _render(records: Iterable[Document | Problem], config: DataConfig) -> Iterator[str]:
    pair_format = config.pairs
    for record in records:
        if isinstance(record, Document):
            yield record.text
        else:
            solution = pair_format.restyle(record.solution or "", record.answer)
            yield pair_format.render(record.question, solution)
