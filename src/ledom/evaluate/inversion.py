"""Finds likely prompts for an output: a reverse model proposes them, a forward model ranks them.

    out/proposals.jsonl    the prompts that the reverse model wrote before each output
    out/scores.jsonl       how likely the forward model finds each distinct prompt
    out/ranking.jsonl      the best prompts of each output

By Bayes' rule, P(prompt | output) is proportional to P(prompt, output), which the forward model
gives. Any reverse model can propose; it can be trained further on outputs of the model to invert
(examples/invert_prompt.py). Compare Morris et al., Language Model Inversion (ICLR 2024), who invert
probabilities, and Zhang et al., Extracting Prompts by Inverting LLM Outputs (EMNLP 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ledom.core.errors import InputError
from ledom.core.files import fingerprint
from ledom.core.records import Problem, Record, write_records
from ledom.core.stage import Track
from ledom.evaluate.proposals import (
    Prompt,
    Proposal,
    check_directions,
    check_prompts,
    fitting,
    propose,
    verify,
)
from ledom.lm.language_model import LanguageModel, Sampling, TokenSpan
from ledom.rerank.score import check_scoring
from ledom.text.pair_format import PairFormat

__all__ = ["InvertedPrompt", "Output", "invert", "sample_pairs", "with_room"]


@dataclass(kw_only=True)
class Output(Record):
    """A text that a model wrote, and its prompt if known."""

    id: str
    text: str
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Refuse an empty text or prompt.

        >>> Output(id="a", text=" ")
        Traceback (most recent call last):
        ledom.core.errors.InputError: output 'a' has an empty text; remove it
        """
        if not self.text.strip():
            raise InputError(f"output {self.id!r} has an empty text; remove it")
        if self.prompt is not None and not self.prompt.strip():
            raise InputError(
                f"output {self.id!r} has an empty prompt; leave the key 'prompt' out if it is "
                "unknown"
            )


@dataclass(kw_only=True)
class InvertedPrompt(Record):
    """A prompt proposed for an output, its rank from 1, and its score in nats."""

    KEY = ("output_id", "rank")

    output_id: str
    rank: int
    prompt: str
    score: float


def invert(
    outputs: Sequence[Output],
    reverse: LanguageModel,
    forward: LanguageModel,
    sampling: Sampling,
    num_samples: int,
    out: Path,
    track: Track,
    prior: bool = True,
) -> list[InvertedPrompt]:
    """The prompts proposed for each output, best first; ties stay in the order of drawing.

    Left out are outputs without room for a prompt (see `with_room`), and proposals that are empty,
    that reached `max_tokens` and so lack their beginning, or that do not fit the forward model's
    context. Without `prior`, prompts are scored by log P(output | prompt), else by
    log P(prompt, output). Before any work, raises the errors of `with_room`,
    `check_directions` and `check_scoring`.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> reverse = FakeLanguageModel(direction="reverse", answers=["2 + 2?"])
    >>> with tempfile.TemporaryDirectory() as out:
    ...     outputs, forward = [Output(id="a", text="4")], FakeLanguageModel()
    ...     invert(outputs, reverse, forward, Sampling(), 3, Path(out), no_progress)[0].prompt
    '2 + 2?'
    """
    check_directions(reverse, forward)
    check_scoring(forward)
    outputs = with_room(outputs, reverse, forward, sampling)
    prompts = [_prompt(output, reverse) for output in outputs]
    path = out / "proposals.jsonl"
    drawn = propose(reverse, prompts, sampling, num_samples, path, track, "proposing prompts")
    proposals = _distinct(drawn, reverse.pair_format)
    texts = {output.id: output.text for output in outputs}
    found = {proposal.key: proposal.text for proposal in proposals}
    scores = verify(
        forward,
        proposals,
        lambda some: pair_spans(forward, [(p.text, texts[p.item_id]) for p in some], prior),
        {"outputs": fingerprint(texts.items()), "prior": prior},
        out / "scores.jsonl",
        track,
        "verifying prompts",
    )
    ranking = [
        InvertedPrompt(output_id=output_id, rank=rank, prompt=found[one.key], score=one.logprob)
        for output_id, own in groupby(scores, lambda one: one.item_id)
        for rank, one in enumerate(sorted(own, key=lambda one: -one.logprob), start=1)
    ]
    write_records(out / "ranking.jsonl", ranking)
    return ranking


def with_room(
    outputs: Sequence[Output], reverse: LanguageModel, forward: LanguageModel, sampling: Sampling
) -> list[Output]:
    """The outputs that leave room for a prompt of `max_tokens` tokens in the reverse model's
    context, and for a prompt at all in the forward model's.

    Raises the `InputError` of the first output if none does.

    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> reverse = FakeLanguageModel(direction="reverse", context=16)
    >>> outputs = [Output(id="a", text="4"), Output(id="b", text="So it is 4.")]
    >>> [o.id for o in with_room(outputs, reverse, FakeLanguageModel(), Sampling(max_tokens=8))]
    ['a']
    """

    def check(output: Output) -> None:
        check_prompts([_prompt(output, reverse)], reverse, sampling)
        (span,) = pair_spans(forward, [("", output.text)], prior=False)
        if (num_tokens := len(span.ids) - 1) >= forward.context:
            raise InputError(
                f"{forward.name}: output {output.id!r} has {num_tokens} tokens, which leave no "
                f"room for a prompt in the model's context of {forward.context}; shorten it"
            )

    return fitting(outputs, check)


def _prompt(output: Output, reverse: LanguageModel) -> Prompt:
    """The text that the reverse model reads before it writes a prompt for an output."""
    pair_format = reverse.pair_format
    return Prompt(output.id, pair_format.after_question(pair_format.restyle(output.text)))


def sample_pairs(
    forward: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, path: Path, track: Track
) -> list[Problem]:
    """One output for each prompt, to train a model that inverts `forward`.

    Each is a Problem: the question is the prompt, the solution the output. Outputs that reached
    `max_tokens` are left out.

    >>> import tempfile
    >>> from ledom.core.stage import no_progress
    >>> from ledom.lm.backends.fake import FakeLanguageModel
    >>> lm, prompts = FakeLanguageModel(answers=["4"]), [Prompt("a", "2 + 2?")]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "outputs.jsonl"
    ...     [pair] = sample_pairs(lm, prompts, Sampling(max_tokens=8), file, no_progress)
    >>> pair.question, pair.solution
    ('2 + 2?', '4')
    """
    asked = [Prompt(p.id, forward.pair_format.before_solution(p.text)) for p in prompts]
    check_prompts(asked, forward, sampling)
    written = propose(forward, asked, sampling, 1, path, track, "sampling outputs")
    texts = {prompt.id: prompt.text for prompt in prompts}
    return [
        Problem(id=one.item_id, question=texts[one.item_id], solution=solution)
        for one in written
        if one.finish_reason == "stop"
        and (solution := forward.pair_format.written_solution(one.text)).strip()
    ]


def _distinct(proposals: Sequence[Proposal], pair_format: PairFormat) -> list[Proposal]:
    found: dict[tuple[str, str], Proposal] = {}
    for one in proposals:
        text = pair_format.written_question(one.text)
        if one.finish_reason == "stop" and text.strip():
            found.setdefault((one.item_id, text), replace(one, text=text))
    return [*found.values()]


def pair_spans(
    lm: LanguageModel, pairs: Sequence[tuple[str, str]], prior: bool
) -> Iterator[TokenSpan]:
    """For each (question, solution), the tokens whose log-probabilities sum to log P of both.

    Without `prior`, they sum to log P(solution | question). The solution is read in the model's
    style. The document-end token counts.
    """
    styled = [(question, lm.pair_format.restyle(solution)) for question, solution in pairs]
    for pair in lm.pair_format.encode(lm.tokenizer, styled, *lm.special_ids):
        start = max(1, len(lm.bos_ids)) if prior else pair.solution[0]  # the first has no context
        yield TokenSpan(pair.ids, start, len(pair.ids))
