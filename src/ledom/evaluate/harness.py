"""A ledom model of either direction as a model of lm-evaluation-harness, under the name `ledom`.

For a forward model, tokens and numbers equal those of the harness's own HFLM. docs/evaluate.md
explains the numbers of a reverse model.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ledom.core.direction import Direction
from ledom.core.errors import InputError, needs_extra
from ledom.core.reading import JsonObject
from ledom.evaluate.likelihood import Convention, score
from ledom.evaluate.scorings import DEFAULT_SCORING, SCORINGS, Parts, Request, Scoring
from ledom.evaluate.texts import Draw, numbered, read_settings
from ledom.lm import load
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.model.device import default_device
from ledom.rerank.score import check_finite

with needs_extra("lm-eval", "eval", "evaluation"):
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.api.task import Task
    from lm_eval.models.utils import postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["LedomLM", "Written", "document_batches"]

_TOGETHER = 256  # requests that go to the model in one call

_WITH_EXAMPLES: dict[str, Task] = {}
"""The tasks by name whose contexts begin with solved examples."""

T = TypeVar("T")
Written = tuple[str, int]
"""A text, and how many tokens its prompt lost."""


def _remember_examples() -> None:
    """Record which tasks build requests with examples, as the harness does not tell the model."""
    build = Task.build_all_requests

    @wraps(build)
    def build_and_note(task: Task, *given: Any, **settings: Any) -> None:
        _WITH_EXAMPLES.pop(str(task.config.task), None)
        if task.config.num_fewshot and not settings.get("apply_chat_template"):
            _WITH_EXAMPLES[str(task.config.task)] = task
        build(task, *given, **settings)

    Task.build_all_requests = build_and_note


_remember_examples()


@register_model("ledom")
class LedomLM(TemplateLM):  # type: ignore[misc]
    """Any model that `ledom.load` accepts, for `lm_eval.simple_evaluate` and `ledom eval`.

    `scoring` names the score that answers log-likelihood requests; see `SCORINGS`. `add_bos_token`
    puts the special tokens that the model was trained to read first in front of every context. By
    default, as in HFLM, only tokens that the tokenizer itself adds are put there. A reverse model
    always reads its special tokens, after the text.

    `cut` counts, by task, the requests whose context was cut to fit the model's.

    >>> from lm_eval.api.instance import Instance
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm = LedomLM(FakeLanguageModel())
    >>> ask = Instance("loglikelihood", {}, ("2 + 2 =", " 4"), 0, metadata=("task", 0, 1))
    >>> (logprob, is_greedy), = lm.loglikelihood([ask])  # nats
    >>> round(logprob, 3), is_greedy
    (-3.178, False)
    """

    def __init__(
        self,
        model: str | LanguageModel = "tiny",
        direction: str | None = None,
        scoring: Scoring | None = None,
        add_bos_token: bool | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> None:
        super().__init__()
        if not isinstance(model, LanguageModel):
            if device == "cuda:0" and default_device() == "cpu":
                device = None  # the default of the harness's command line
            model = load(model, direction, device=device, dtype=dtype)
        self.lm = model
        self.direction = self.lm.direction
        known = SCORINGS[self.direction]
        self.scoring = scoring or DEFAULT_SCORING[self.direction]
        if self.scoring not in known:
            raise InputError(
                f"scoring is {scoring!r}; for a {self.direction} model it is one of "
                f"{', '.join(known)}"
            )
        self.add_bos_token = add_bos_token
        self.batch_size = batch_size  # recorded by the harness; ledom chooses its own
        self.cut: Counter[str] = Counter()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, for chat templates; None if the folder has none."""
        folder = Path(self.lm.name)
        if not (folder / "tokenizer.json").is_file():
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)

    @property
    def tokenizer_name(self) -> str:
        """A name that distinguishes the request caches of models with different chat templates."""
        return f"{self.lm.name}-{self.lm.tokenizer.fingerprint}".replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation in the model's own chat template; raises `InputError` without one."""
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise InputError(f"{self.lm.name}: the model has no chat template; leave it out")
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    @property
    def eot_token_id(self) -> int:
        return self.lm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that is read before a text without a context; see `check_prefix`."""
        self.check_prefix()
        return self.convention.prefix[-1]

    def check_prefix(self) -> None:
        """Raise `InputError` for a reverse model that reads no special token first."""
        if not self.convention.prefix:
            raise InputError(
                f"{self.lm.name}: the model reads no special token before a text, so the first "
                "token has no log-probability; name one in config.json as ledom_bos_tokens"
            )

    @property
    def max_length(self) -> int:
        """The model's context in tokens."""
        return self.lm.context

    @cached_property
    def convention(self) -> Convention:
        bos = tuple(self.lm.bos_ids)
        if self.direction is Direction.REVERSE:
            return Convention(first=bos, prefix=bos)
        tokenizer = self.lm.tokenizer
        own = tuple(tokenizer.token_id(token) for token in tokenizer.bos_tokens)
        named = None if self.tokenizer is None else self.tokenizer.bos_token_id
        default = (named,) if named is not None else (tokenizer.eos_id,)
        if self.add_bos_token is None:
            return Convention(first=own, prefix=own or default)
        return Convention(first=bos if self.add_bos_token else (), prefix=bos or default)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids in reading order; a forward model's start with special tokens where HFLM's do."""
        ids = self.lm.tokenizer.encode(string).ids
        first = list(self.convention.first) if self.direction is Direction.FORWARD else []
        plain = add_special_tokens is False or ids[: len(first)] == first
        return ids if plain else [*first, *ids]

    # Log-likelihoods

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each request, its score by `self.scoring`, and whether greedy decoding writes it;
        raises `InputError` if the scoring does not apply."""
        self.check_prefix()
        asked = [self.request(instance) for instance in requests]
        found = []
        for instance, parts in zip(requests, self.parts(requests, asked), strict=True):
            value = SCORINGS[self.direction][self.scoring](parts)
            if value is None:
                raise InputError(
                    f"task {instance.task_name!r}: {self.scoring!r} does not apply to a document "
                    f"with {parts.kind} and a {self.direction} model"
                )
            if parts.cut:
                self.cut[str(instance.task_name)] += 1
            found.append((value, parts.greedy))
            self.cache_hook.add_partial("loglikelihood", instance.args, found[-1])
        return found

    def request(self, instance: Instance) -> Request:
        """A request of the harness, in the group of its document.

        The harness puts solved examples in front of the question. A reverse model would read them
        last, so for it they come after the continuation (except in a chat).
        """
        context, continuation = instance.args[:2]
        known = instance.task_name is not None and instance.doc_id is not None
        group = (instance.task_name, instance.doc_id) if known else None
        examples = self._examples(instance)
        if self.direction is Direction.FORWARD:
            return Request(context, continuation, group, examples=len(examples))
        blank = examples[len(examples.rstrip()) :]
        after = blank + examples.rstrip()
        return Request(context[len(examples) :], continuation, group, after)

    def _examples(self, instance: Instance) -> str:
        """The part of a context before its own question; empty in a chat."""
        task, context = _WITH_EXAMPLES.get(str(instance.task_name)), str(instance.args[0])
        if task is None or not context.strip():
            return ""
        doc = instance.doc
        several = getattr(task, "multiple_input", False)
        asked = str(task.doc_to_choice(doc)[instance.idx] if several else task.doc_to_text(doc))
        return context[: max(0, context.rfind(asked))] if asked.strip() else context

    def parts(self, requests: Sequence[Instance], asked: Sequence[Request]) -> list[Parts]:
        """The parts of every request; the requests of a document are scored together."""
        found: list[Parts] = []
        for batch in document_batches(asked, lambda request: request.group):
            found += score(self.lm, batch, self.convention, self.scoring == "reversed prompt")
        return found

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError  # `loglikelihood` does its own encoding

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log P(text) of every text, in as few windows of the model's context as possible.

        In reverse, the windows start at the text's end. Bits per byte of both directions can be
        compared, because neither counts the token that ends a document.
        """
        return [self.rolling(str(instance.args[0])) for instance in requests]

    def rolling(self, text: str) -> float:
        """log P(text) in nats; the model reads its special tokens first."""
        ids = self.direction.to_model_order(self.tok_encode(text))
        last, room = self.prefix_token_id, self.lm.context + 1 - len(self.convention.prefix)
        targets: list[TokenSpan] = []
        for window in get_rolling_token_windows(ids, last, room, 1):
            known, predicted = make_disjoint_window(window)
            known = known if targets else [*self.convention.prefix]
            targets.append(self._window(known, predicted))
        every = self.lm.logprobs(targets)
        for values in every:
            check_finite(values, self.lm, "a text")
        return float(sum(float(values.sum(dtype=float)) for values in every))

    def _window(self, known: list[int], predicted: list[int]) -> TokenSpan:
        """Tokens in model order as a span in reading order."""
        ids = [*known, *predicted]
        span = self.direction.span_to_model_order(len(known), len(ids), len(ids))
        return TokenSpan(self.direction.to_reading_order(ids), *span)

    # Texts

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text after (reverse: before) each context, up to the first stop string (reverse: from
        the last one), in reading order."""
        draws = [*numbered(requests)]
        texts = []
        for instance, (text, cut) in zip(requests, self.write(draws), strict=True):
            self.cut[str(instance.task_name)] += bool(cut)
            self.cache_hook.add_partial("generate_until", instance.args, text)
            texts.append(text)
        return texts

    def write(self, draws: Sequence[Draw]) -> list[Written]:
        """The text of every draw; prompts with the same settings are written together."""
        places: dict[tuple[str, str], list[int]] = {}
        for place, draw in enumerate(draws):
            places.setdefault((repr(draw.settings), draw.context), []).append(place)
        alike: dict[tuple[str, int, int], list[list[int]]] = {}
        for (settings, _), own in places.items():
            numbers = [draws[place].number for place in own]  # a process may own only some of them
            alike.setdefault((settings, min(numbers), max(numbers) + 1), []).append(own)
        results: list[Written] = [("", 0)] * len(draws)
        for (_, first, end), prompts in alike.items():
            contexts = [draws[own[0]].context for own in prompts]
            how = draws[prompts[0][0]].settings
            written = self.write_alike(contexts, how, first, end - first)
            for own, texts in zip(prompts, written, strict=True):
                for place in own:
                    results[place] = texts[draws[place].number - first]
        return results

    def write_alike(
        self, contexts: Sequence[str], settings: JsonObject, first: int, count: int
    ) -> list[list[Written]]:
        """`count` samples for each context, numbered from `first`, with the harness's settings."""
        writer = self._writer(contexts)
        sampling, until, room = self.generation_settings(settings, writer)
        fitted = [self.lm.shortened_prompt(context, room) for context in contexts]
        prompts, greedy = [text for text, _ in fitted], sampling.temperature == 0
        numbers = (1, 0) if greedy else (count, first)
        texts: list[list[Written]] = [[] for _ in contexts]
        for place, made in writer.generate(prompts, sampling, *numbers):
            own = [(self._cut_at(one.text, until), fitted[place][1]) for one in made]
            texts[place] = own * count if greedy else own
        return texts

    def generation_settings(
        self, settings: JsonObject, writer: LanguageModel
    ) -> tuple[Sampling, list[str], int]:
        """The sampling, the stop strings and the most tokens of a prompt, from the harness's
        settings; raises `InputError` if the model cannot write with these settings."""
        sampling, until = read_settings(settings, self.lm.stops_at_patterns)
        room = self.lm.context - sampling.max_tokens - len(writer.bos_ids)
        if room < 1:
            raise InputError(
                f"{self.lm.name}: {sampling.max_tokens} new tokens leave no room for a prompt in a "
                f"context of {self.lm.context}; lower the task's max_gen_toks"
            )
        return sampling, until, room

    def _writer(self, contexts: Sequence[str]) -> LanguageModel:
        """The model; a forward one puts the special tokens of HFLM in front of a prompt."""
        if self.direction is Direction.REVERSE or not all(contexts):
            return self.lm
        writer = copy.copy(self.lm)
        writer.bos_ids = list(self.convention.first)
        return writer

    def _cut_at(self, text: str, until: Sequence[str]) -> str:
        """The part of a text that was written before any stop string."""
        if self.direction is Direction.FORWARD:
            return str(postprocess_generated_text(text, list(until), None))
        return min((text.rsplit(term, 1)[-1] for term in until), key=len, default=text)


def document_batches(requests: Sequence[T], document: Callable[[T], Hashable]) -> list[list[T]]:
    """Consecutive batches of requests, about `_TOGETHER` each, that never divide a document.

    `document` returns what the requests of a document share, or None for a request on its own.

    >>> document_batches([("a", " 3"), ("a", " 4")], lambda request: request[0])
    [[('a', ' 3'), ('a', ' 4')]]
    """
    batches: list[list[T]] = []
    last = None
    for request in requests:
        own = document(request)
        if not batches or (len(batches[-1]) >= _TOGETHER and (own is None or own != last)):
            batches.append([])
        batches[-1].append(request)
        last = own
    return batches
