"""From a recipe's data section to a tokenizer and token stores, prepared once for both directions.

Sources: token stores that `ledom tokenize` made (`data.sources`); or, prepared here into stores of
the same format, the embedded generator (`gsm_symbolic`) or a JSONL file of problems with solutions
or of documents (`data.train`). A problem becomes the document that its pair format renders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from random import Random

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ledom.core import processes
from ledom.core.errors import InputError, OutputError, RecipeError
from ledom.core.files import alone_in, check_settings, file_hash, write_json
from ledom.core.reading import Config, read_json
from ledom.core.records import Document, Problem, Record, read_records
from ledom.data.packing import Packing
from ledom.data.problems import GENERATOR, generate_problems
from ledom.data.store import TokenStore, write_store
from ledom.text.pair_format import PairFormat
from ledom.text.solution_style import Style, equations
from ledom.text.tokenizer import Tokenizer, train_tokenizer

__all__ = [
    "DataConfig",
    "PreparedData",
    "Source",
    "SourceConfig",
    "prepare_data",
    "read_split",
    "shortfalls",
]

_HELD_OUT_EVERY = 50
_PROBLEMS_IN_DRILL = 3  # about as long as a problem with its solution
_TOKENIZER_SAMPLE = 20_000  # documents that a new tokenizer is trained on


class SourceConfig(Config):
    """One part of a mixture."""

    path: str
    """A folder that `ledom tokenize` made."""
    weight: PositiveFloat = 1.0
    """Its share of the windows, relative to the other sources' weights."""


class DataConfig(Config):
    """What a model reads."""

    sources: tuple[SourceConfig, ...] = ()
    """Token stores to mix, instead of `train`; `valid` is then a token store too."""
    train: str = GENERATOR
    """`gsm_symbolic` for the embedded generator, or a JSONL file of problems or documents."""
    valid: str | None = None
    """Likewise for validation; nothing takes the generator's valid split, or holds out 2 %."""
    packing: Packing = "documents"
    """`documents`: a window is one document or a stretch of a long one; `fixed`: train.seq_len
    tokens after the other, as many documents as they hold, for pretraining at any size."""
    mask_across_documents: bool = True
    """Whether attention stops where a document starts."""
    reset_position_ids: bool = True
    """Whether positions start at 0 where a document starts."""
    verify: bool = True
    """Whether every byte is read before the first step and compared with the checksums. Sizes are
    compared in any case."""
    num_documents: PositiveInt | None = None
    """Documents to draw from the generator, or the most to read from a file."""
    num_valid: PositiveInt = 500
    """Most documents to validate on."""
    pair_format: str = PairFormat().template
    """How a problem's question and solution become one text."""
    solution_style: Style = "as written"
    """How solutions of a file are written: as they are, `plain` (one form of equations and
    final answer), their `numbers` alone, or the `equations` among these. Candidates are then read
    in the same style."""
    tokenizer: str | None = None
    """A tokenizer.json to use; nothing trains one."""
    eos_token: str | None = None
    """The token that ends documents, where the files beside `tokenizer` name none or another."""
    vocab_size: PositiveInt = 2048
    """Size of a newly trained vocabulary."""
    equation_only_fraction: NonNegativeFloat = Field(default=0.0, lt=1)
    """Share of the generator's documents that are bare equations, out of the worked solutions of
    further problems: arithmetic takes far more examples than reading."""
    seed: int = 0
    """Seed of the generator."""

    @property
    def pairs(self) -> PairFormat:
        """How a question and its solution become one text.

        >>> DataConfig(pair_format="{question} A: {solution}").pairs.render("2 + 2?", "4")
        '2 + 2? A: 4'
        """
        return PairFormat(self.pair_format, self.solution_style)


@dataclass(frozen=True)
class Source:
    """A token store and its weight in the mixture."""

    store: TokenStore
    weight: float = 1.0


class PreparedData:
    """A tokenizer, the sources to train on, and the store to validate on.

    Raises `InputError` for a store that is damaged, or made with another tokenizer.
    """

    def __init__(self, folder: Path, config: DataConfig | None = None) -> None:
        """`folder` is where `prepare_data` put the data of a recipe without sources."""
        named = () if config is None else config.sources
        if config is not None and named:
            self.tokenizer = Tokenizer.load(config.tokenizer or named[0].path, config.eos_token)
            self.sources = tuple(Source(TokenStore(s.path), s.weight) for s in named)
            self.valid = TokenStore(config.valid or "")
        else:
            self.tokenizer = Tokenizer.load(folder)
            self.sources = (Source(TokenStore(folder / "train")),)
            self.valid = TokenStore(folder / "valid")
        for store in (*(source.store for source in self.sources), self.valid):
            if store.eos_id != self.tokenizer.eos_id:
                raise InputError(
                    f"its documents end with token {store.eos_id}, the run's with "
                    f"{self.tokenizer.eos_token!r}, {self.tokenizer.eos_id}; change "
                    "data.eos_token, or tokenize again",
                    path=store.folder,
                )
            if store.manifest.tokenizer != self.tokenizer.fingerprint:
                raise InputError(
                    "was made with a different tokenizer; tokenize again, with the tokenizer.json "
                    "of the other stores",
                    path=store.folder,
                )
            if config is None or config.verify:
                store.verify(processes.rank(), processes.size())


def prepare_data(config: DataConfig, folder: Path) -> PreparedData:
    """Make tokenizer and stores under `folder`, unless an earlier call with `config` did.

    Of two processes that start together, such as twins, one prepares the data and the other waits,
    with a line now and then. Nothing is made for `config.sources`, which are token stores already.

    >>> import tempfile
    >>> from ledom.core.records import write_records
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "documents.jsonl")
    ...     write_records(file, [Document(id=i, text="so") for i in "abc"])
    ...     data = prepare_data(DataConfig(train=str(file), vocab_size=257), Path(folder))
    ...     data.sources[0].store.manifest.num_documents, data.valid.manifest.num_documents
    (2, 1)
    """
    if config.sources:
        _check_sources(config)
        return PreparedData(folder, config)
    try:
        with alone_in(folder, "prepares the data", wait=True):
            _prepare(config, folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error}") from error
    return PreparedData(folder, config)


def shortfalls(config: DataConfig, data: PreparedData) -> list[str]:
    """One line for each setting that asks for more than the prepared data hold.

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
        return []
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


def _check_sources(config: DataConfig) -> None:
    """Keys that contradict each other."""
    if config.valid is None:
        raise RecipeError(
            "key data.valid is missing: with data.sources, name a token store of other documents"
        )
    if "train" in config.model_fields_set:
        raise RecipeError(
            f"key data.train is {config.train!r} and data.sources is given too; leave one out"
        )


def _prepare(config: DataConfig, folder: Path) -> None:
    reading = {"sources", "packing", "mask_across_documents", "reset_position_ids", "verify"}
    settings = config.model_dump(mode="json", exclude=reading) | {"files": _file_hashes(config)}
    marker = folder / "data.json"
    if marker.is_file():
        remedy = "give the run another name, or remove this folder"
        check_settings(read_json(marker), settings, folder, remedy)
        return
    train, valid, origins = _sources(config)
    tokenizer = _tokenizer(config, train)
    tokenizer.save(folder)
    write_store(folder / "train", train(), tokenizer, config.train)
    write_store(folder / "valid", valid(), tokenizer, config.valid or config.train, origins)
    write_json(marker, settings)  # last: its existence means all of it is there


def _tokenizer(config: DataConfig, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """The tokenizer that is named, or one trained on the first of the texts."""
    if config.tokenizer is not None:
        return Tokenizer.load(config.tokenizer, config.eos_token)
    if config.eos_token is not None:
        raise RecipeError(
            f"key data.eos_token is {config.eos_token!r} without data.tokenizer; a tokenizer "
            "that is trained here has its own"
        )
    return train_tokenizer(islice(texts(), _TOKENIZER_SAMPLE), config.vocab_size)


def _file_hashes(config: DataConfig) -> dict[str, str]:
    """Hashes of the files that the data comes from, so that a changed one is noticed."""
    named = (config.train, config.valid, config.tokenizer)
    return {
        name: file_hash(Path(name)) for name in named if name is not None and Path(name).is_file()
    }


def _sources(
    config: DataConfig,
) -> tuple[Callable[[], Iterator[str]], Callable[[], Iterator[str]], list[tuple[str, int]]]:
    """Functions that start the training and the validation texts afresh, and what the validation
    store's manifest says of where its texts came from."""
    if config.train == GENERATOR:
        if config.num_documents is None:
            raise RecipeError("key data.num_documents is missing: the generator never ends")
        count = config.num_documents
        return (
            lambda: _generated(count, config),
            lambda: _render(generate_problems("valid", config.num_valid, config.seed), config),
            [],
        )
    records, held_out = read_split(config)
    return lambda: _render(records, config), lambda: _render(held_out, config), _origins(held_out)


def _origins(records: Sequence[Document | Problem]) -> list[tuple[str, int]]:
    """The records' `source`, in runs of records; nothing where no record has any."""
    named = [r.source if isinstance(r, Document) else r.extra.get("source") for r in records]
    if not any(named):
        return []
    runs = groupby(str(name) if name else "no source" for name in named)
    return [(name, sum(1 for _ in run)) for name, run in runs]


def read_split(
    config: DataConfig,
) -> tuple[Sequence[Document | Problem], Sequence[Document | Problem]]:
    """The records of a file to train on, and those to validate on.

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
        return records, _read_documents(config.valid)[: config.num_valid]
    # Every fiftieth, so that a sorted file is held out evenly.
    held_out = records[::_HELD_OUT_EVERY][: config.num_valid]
    held_ids = {record.id for record in held_out}
    records = [record for record in records if record.id not in held_ids]
    if not records:
        raise InputError(
            "nothing is left to train on once a part is held out for validation; add records "
            "with other ids, or name a file as data.valid",
            path=config.train,
        )
    return records, held_out


def _read_documents(path: str | Path) -> list[Document | Problem]:
    """Read a JSONL file of documents (key `text`) or of problems with solutions.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = Path(file.name).write_text('{"id": "a", "text": "Hello."}')
    ...     _read_documents(file.name)
    [Document(extra={}, id='a', text='Hello.', source=None)]
    """
    if "text" in read_records(path, Record)[0].extra:
        return list(read_records(path, Document))
    problems = read_records(path, Problem, Problem.require_solution)
    return list(problems)


def _generated(count: int, config: DataConfig) -> Iterator[str]:
    """Training documents of the generator: problems, and drills in between."""
    problems = generate_problems("train", count * _PROBLEMS_IN_DRILL, config.seed)
    rng = Random(f"drills-{config.seed}")
    for _ in range(count):
        if rng.random() >= config.equation_only_fraction:
            yield from _render([next(problems)], config)
        else:
            solutions = (p.solution or "" for p in islice(problems, _PROBLEMS_IN_DRILL))
            yield "\n".join(step for solution in solutions for step in equations(solution))


def _render(records: Iterable[Document | Problem], config: DataConfig) -> Iterator[str]:
    pair_format = config.pairs
    for record in records:
        if isinstance(record, Document):
            yield record.text
        else:
            solution = pair_format.restyle(record.solution or "", record.answer)
            yield pair_format.render(record.question, solution)
