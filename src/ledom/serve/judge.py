"""Rewards for answers: a pair of models, and a strategy that turns their scores into one number.

It does not know about requests. A special token's name inside a text is encoded as ordinary
characters, never as the token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ledom.core.errors import InputError
from ledom.core.records import Candidate, Problem, Score
from ledom.lm import UNLIKELY_LOSS, unfamiliar
from ledom.lm.language_model import LanguageModel
from ledom.rerank.candidate_table import candidate_features, computable_features
from ledom.rerank.candidates import is_blank
from ledom.rerank.score import score_candidates
from ledom.rerank.strategies import Pick, Vote
from ledom.rerank.weights import TunedWeights, default_weights
from ledom.serve.batching import Batcher, Steps, finish
from ledom.serve.chat_text import Messages, answer_of, is_open_thought, question_of

__all__ = ["LONGEST_TOKEN", "MASK_COPIES", "Judge", "Judgement", "Pair", "best_first"]

_LOG_NAMES = {"y|x": "log_p_yx", "x|y": "log_p_xy", "y": "log_p_y"}
MASK_COPIES = 8
"""Copied passages of at least this many words are left out by default; see `Judge`."""
LONGEST_TOKEN = 64
"""Most characters per token, on average over a text."""
_SMALLEST = -700.0  # nats: below about -745, exp is 0
_MARGIN = 64  # most tokens of a template, special tokens included
_TOGETHER = 16  # small requests that share a batch, no matter how slow the machine is


@dataclass(frozen=True)
class Pair:
    """A question and an answer to it."""

    question: str
    answer: str


@dataclass(frozen=True)
class Judgement:
    """The models' scores for an answer, and its reward."""

    reward: float
    """The strategy's score: the larger, the better."""
    scores: dict[str, Score]
    """Log-probabilities by target (`y|x`, `x|y`, `y`), for the models that are loaded."""
    features: dict[str, float]
    """See `ledom.rerank.candidate_table`."""

    @property
    def probability(self) -> float:
        """The reward on a scale from 0 to 1, in the same order: exp(reward), at most 1.

        Where exp would round to 0, as for the sum over a long answer, it is a tiny number instead.

        >>> round(Judgement(reward=-0.5, scores={}, features={}).probability, 3)
        0.607
        """
        if self.reward < _SMALLEST:
            return math.exp(_SMALLEST) * _SMALLEST / self.reward
        return math.exp(min(0.0, self.reward))

    @property
    def is_truncated(self) -> bool:
        """Whether the answer was longer than a model's context, and lost its end."""
        return any(score.extra.get("truncated") for score in self.scores.values())

    def value(self, use_activation: bool) -> float:
        """`probability` with `use_activation` (vLLM's term), otherwise `reward`."""
        return self.probability if use_activation else self.reward

    @property
    def logprobs(self) -> dict[str, float]:
        """The log-probabilities under names for logs: `log_p_xy` is log P(x|y)."""
        return {_LOG_NAMES[target]: score.logprob for target, score in self.scores.items()}

    @property
    def num_tokens(self) -> int:
        """Tokens of question and answer, special ones included."""
        if "x|y" in self.scores:
            return self.scores["x|y"].num_tokens + self.scores["y"].num_tokens
        return self.scores["y|x"].num_tokens


def _cost(pair: Pair) -> float:
    """The estimated time of a pair, in characters: its length and a constant."""
    return 20.0 + len(pair.question) + len(pair.answer)


def best_first(judged: Sequence[Judgement]) -> list[int]:
    """The indices of the judgements, the largest reward first.

    >>> best_first([Judgement(reward, {}, {}) for reward in (-2.0, -1.0, -3.0)])
    [1, 0, 2]
    """
    return sorted(range(len(judged)), key=lambda i: -judged[i].reward)


class Judge:
    """Judges answers with a forward model, a reverse model, or both.

    Passages of `mask_copies` or more words (0: none) that an answer copies from its question are
    hidden from the reverse model, because an answer that restates the question would explain it
    perfectly. `empty_reward` is the reward of an empty answer, or of a thought that was cut off;
    without it, such an answer is judged as an empty text, whose sum of log-probabilities can be the
    highest of all. Raises `InputError` for a `strategy` that does not score each answer alone or
    lacks a model or weight, and if `empty_reward` is not a number.
    """

    def __init__(
        self,
        forward: LanguageModel | None,
        reverse: LanguageModel | None,
        strategy: str | None = None,
        weights: TunedWeights | None = None,
        mask_copies: int = MASK_COPIES,
        empty_reward: float | None = None,
    ) -> None:
        self.forward, self.reverse = forward, reverse
        self.models = [lm for lm in (forward, reverse) if lm is not None]
        if not self.models:
            raise InputError("no model to judge with; give a forward or a reverse one")
        self.weights = weights or default_weights()
        for line in self.weights.other_models({str(m.direction): m.identity for m in self.models}):
            logging.getLogger("ledom").warning("%s", line)
        for lm in self.models:
            lm.tokenizer.spell_out_special_tokens()
        if empty_reward is not None and not math.isfinite(empty_reward):
            raise InputError(f"empty_reward is {empty_reward}; give a finite number")
        self.mask_copies, self.empty_reward = mask_copies, empty_reward
        self._targets = ["y|x"] * bool(forward) + ["x|y", "y"] * bool(reverse)
        alone = "reverse_only" if reverse else "forward"
        self.strategy = strategy or ("reverse_reward" if len(self.models) == 2 else alone)
        picks = {n: s for n, s in self.usable(self.weights).items() if isinstance(s, Pick)}
        if self.strategy not in picks:
            raise InputError(
                f"strategy {self.strategy!r:.60} cannot score one answer with these models and "
                f"weights; choose among: {', '.join(picks)}"
            )
        self._strategy = picks[self.strategy]
        self._weights = self.weights.weights.get(self.strategy)
        self._has_warned = False

    @property
    def strategy_weights(self) -> dict[str, float]:
        """The weight of each feature in the reward; features left out have none.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> Judge(FakeLanguageModel(), FakeLanguageModel(direction="reverse")).strategy_weights
        {'forward': 0.5, 'reverse': 0.5}
        """
        return dict(self._weights or dict.fromkeys(self._strategy.features, 1.0))

    @property
    def log_names(self) -> list[str]:
        """The names in `Judgement.logprobs`.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> Judge(FakeLanguageModel(), None).log_names
        ['log_p_yx']
        """
        return [_LOG_NAMES[target] for target in self._targets]

    def usable(self, weights: TunedWeights) -> dict[str, Pick | Vote]:
        """The strategies that can choose by the scores of these models and by `weights`, by id.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> list(Judge(FakeLanguageModel(), None).usable(default_weights()))[:3]
        ['forward', 'forward_mean', 'majority']
        """
        usable = weights.usable_with(computable_features(self._targets))
        return {n: s for n, s in usable.items() if isinstance(s, (Pick, Vote))}

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise `InputError` if a question is empty or leaves no room for an answer.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> Judge(FakeLanguageModel(), None).check([Pair(" ", "4")])
        Traceback (most recent call last):
        ledom.core.errors.InputError: the question is empty
        """
        questions = dict.fromkeys(pair.question for pair in pairs)
        for question in questions:
            if not question.strip():
                raise InputError("the question is empty")
        for lm in self.models:
            # A token has at least one byte, so most questions are known to fit unencoded.
            long = [q for q in questions if 4 * len(q) + _MARGIN > lm.context]
            # To encode a question of far too many characters would take long.
            fits = all(len(question) <= LONGEST_TOKEN * lm.context for question in long)
            if long and fits:
                texts = [(question, "") for question in long]
                encoded = lm.pair_format.encode(lm.tokenizer, texts, *lm.special_ids)
                fits = all(len(pair.ids) <= lm.context for pair in encoded)
            if not fits:
                raise InputError(
                    "the question leaves no room for an answer in the "
                    f"{lm.context} tokens that the {lm.direction} model reads; shorten it"
                )

    def read_sample(
        self,
        prompt: str | Messages,
        response: str | Messages,
        remedy: str = "",
        question: str | Messages | None = None,
    ) -> Pair | None:
        """The question and the answer in a trainer's sample; `question` replaces the prompt's.

        None, with a warning that ends with `remedy`, if the prompt has no question or leaves no
        room for an answer, because one such row must not end a run that takes days.
        If the prompt ends with `<think>`, a response without `</think>` is a thought that was cut
        off, unless it has a marked answer.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> judge = Judge(FakeLanguageModel(), None)
        >>> judge.read_sample([{"role": "user", "content": "2 + 2?"}], "4<|im_end|>")
        Pair(question='2 + 2?', answer='4')
        """
        try:
            asked = question_of(prompt if question is None else question)
            pair = Pair(asked, answer_of(response))
            if isinstance(prompt, str) and is_open_thought(prompt):
                whole = f"<think>{pair.answer}"
                pair = replace(pair, answer=whole) if is_blank(whole) else pair
            self.check([pair])
        except InputError as error:
            logging.getLogger("ledom").warning("no reward for a completion: %s%s", error, remedy)
            return None
        return pair

    def judge(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """The judgement of each pair; raises `InputError` if a log-probability is not finite.

        >>> from ledom.lm.backends.fake import FakeLanguageModel
        >>> judge = Judge(None, FakeLanguageModel(direction="reverse"))
        >>> (judgement,) = judge.judge([Pair("2 + 2?", "4")])
        >>> sorted(judgement.logprobs)
        ['log_p_xy', 'log_p_y']
        """
        return finish(self.judge_in_steps(pairs))

    def queue(
        self,
        seconds: float,
        capacity: int,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> Batcher[Pair, Judgement]:
        """A queue that judges the pairs of many callers in batches; see `Batcher`."""
        return Batcher(self.judge_in_steps, _cost, seconds, capacity, _TOGETHER, observe)

    def judge_in_steps(self, pairs: Sequence[Pair]) -> Steps[list[Judgement]]:
        """`judge` as a generator that yields after each batch of a model."""
        questions = dict.fromkeys(pair.question for pair in pairs)
        problem_of = {q: Problem(id=str(i), question=q) for i, q in enumerate(questions)}
        candidates = {
            pair: Candidate(problem_id=problem_of[pair.question].id, index=i, text=pair.answer)
            for i, pair in enumerate(dict.fromkeys(pairs))
        }
        problems, answers = [*problem_of.values()], [*candidates.values()]
        found: list[dict[str, Score]] = [{} for _ in answers]
        for lm in self.models:
            for records in score_candidates(problems, answers, lm, mask_copies=self.mask_copies):
                for record in records:
                    found[record.index][record.target] = record
                yield
        self._warn_once(score for scores in found for score in scores.values())
        judged: dict[Pair, Judgement] = {}
        for pair, candidate in candidates.items():
            scores = found[candidate.index]
            features = candidate_features(scores, problem_of[pair.question], candidate)
            reward = float(self._strategy.weigh(features, self._weights))
            if self.empty_reward is not None and is_blank(pair.answer):
                reward = self.empty_reward
            judged[pair] = Judgement(reward, scores, features)
        return [judged[pair] for pair in pairs]

    def _warn_once(self, scores: Iterable[Score]) -> None:
        """Log, once, that the embedded model does not know such texts: most clients only get a
        number."""
        if self._has_warned or not (warning := unfamiliar(self.reverse, scores, UNLIKELY_LOSS)):
            return
        self._has_warned = True
        logging.getLogger("ledom").warning("judging texts %s", warning)
