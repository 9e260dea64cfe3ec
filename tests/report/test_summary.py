"""The first sentences of a report, compared with handwritten ones."""

from __future__ import annotations

from typing import Any

import pytest

from ledom.report.results import AucResult, Interval, SelectionReport, StrategyResult
from ledom.report.selection_page import render, summarize


def _strategy(name: str, mean: float, **versus: Interval) -> StrategyResult:
    accuracy = Interval(mean, mean - 0.1, mean + 0.1)
    return StrategyResult(
        id=name,
        label=name,
        kind="pick",
        description="",
        formula="",
        accuracy=accuracy,
        versus=versus,
    )


def _made(**changes: Any) -> SelectionReport:
    return SelectionReport(title="", warning=None, **changes)


def _report(difference: Interval, **changes: Any) -> SelectionReport:
    known = {"num_problems": 400, "num_labeled": 400, "chosen": "vote_all_terms"}
    strategies = [
        _strategy("greedy", 0.6),
        _strategy("random", 0.55, greedy=Interval(-0.05, -0.08, -0.02)),
        _strategy("majority", 0.62, greedy=Interval(0.02, -0.01, 0.05)),
        _strategy("reverse_reward", 0.65, greedy=Interval(0.05, 0.01, 0.09)),
        _strategy("luckiest", 0.99, greedy=Interval(0.39, 0.3, 0.5)),
        _strategy("vote_all_terms", 0.6 + difference.mean, greedy=difference),
    ]
    return _made(strategies=strategies, **(known | changes))


def test_the_sentence_names_the_strategy_chosen_in_advance() -> None:
    summary = summarize(_report(Interval(0.07, 0.04, 0.1)))
    assert summary.sentence == (
        "Voting weighted by every score is right on 67.0% of the 400 problems, 7.0 points more "
        "than the greedy answer (95% interval 4.0 to 10.0)."
    )
    names = [strategy.id for strategy in summary.rows.values()]
    assert names == ["greedy", "random", "majority", "reverse_reward", "vote_all_terms"]
    assert [*summary.rows][-1] == "Voting weighted by every score"


@pytest.mark.parametrize(
    ("difference", "end"),
    [
        (
            Interval(0.01, -0.02, 0.04),
            "1.0 points more than the greedy answer (95% interval \u22122.0 to 4.0; it includes "
            "0, so this may be chance).",
        ),
        (
            Interval(-0.05, -0.08, -0.02),
            "5.0 points fewer than the greedy answer (95% interval 2.0 to 8.0).",
        ),
    ],
)
def test_the_sentence_says_if_there_is_no_gain(difference: Interval, end: str) -> None:
    assert summarize(_report(difference)).sentence.endswith(end)


def test_labels_are_counted() -> None:
    partly = summarize(_report(Interval(0.07, 0.04, 0.1), num_labeled=120))
    assert "67.0% of the 120 labeled problems of 400" in partly.sentence
    assert "A sample of 120 problems" in partly.sample
    none = summarize(_made(num_problems=6, num_labeled=0))
    assert none.sentence.startswith("None of the 6 problems has a right answer")
    assert none.rows == {}


def test_without_greedy_the_comparison_is_with_the_majority() -> None:
    versus = {"majority": Interval(0.02, 0.01, 0.03), "random": Interval(0.2, 0.1, 0.3)}
    strategies = [_strategy("majority", 0.6), _strategy("vote_reverse_only", 0.62, **versus)]
    summary = summarize(_made(num_problems=9, chosen="vote_reverse_only", strategies=strategies))
    assert "2.0 points more than majority voting" in summary.sentence
    assert summary.columns == ("majority",)


def test_the_report_says_what_the_sample_can_show() -> None:
    """A half-width of 3 points means a standard error of 3 / 1.96; 2.8 of these are 4.3 points."""
    summary = summarize(_report(Interval(0.07, 0.04, 0.1)))
    assert "a true difference of about 4.3 points four times out of five" in summary.sample
    assert "rough" not in summary.sample
    assert "rough" in summarize(_report(Interval(0.07, 0.04, 0.1), num_labeled=29)).sample
    tiny = summarize(_report(Interval(-0.2, -0.98, 0.97), num_labeled=1)).sample
    assert tiny.endswith("A sample of 1 problem is too small to show any difference.")


def test_the_term_that_carries_the_signal_is_named() -> None:
    def signal(prior: Interval | None) -> str:
        certain = Interval(0.99, 0.98, 1.0)
        auc = [
            AucResult(score="a", term="forward", auc=Interval(0.7, 0.65, 0.75)),
            AucResult(score="c", term="question_numbers", auc=certain),  # no single term
            AucResult(score="d", auc=certain),
        ]
        auc += [AucResult(score="b", term="prior", auc=prior)] if prior else []
        return summarize(_made(auc=auc)).signal

    assert "log P(y), the answer under the reverse model, carries most" in signal(
        Interval(0.8, 0.77, 0.83)
    )
    assert "does best, but not clearly" in signal(Interval(0.8, 0.74, 0.83))
    assert "log P(y|x), the answer under the forward model, carries most" in signal(
        Interval(0.5, 0.45, 0.55)
    )
    only = "The only single term, log P(y|x), the answer under the forward model, puts a right"
    assert signal(None).startswith(only)  # no other can carry less
    assert summarize(_made()).signal == ""


@pytest.mark.slow
def test_the_page_explains_the_dashed_line_only_if_there_is_one() -> None:
    """The line marks the greedy answer; right-to-left texts begin at the right."""
    known = _report(Interval(0.1, 0.0, 0.2))
    unknown = _made(strategies=[_strategy("random", 0.5), _strategy("majority", 0.6)])
    for report, is_drawn in ((known, True), (unknown, False)):
        page = render(report)
        assert ("to the right of the dashed line are above" in page) is is_drawn
        assert ".solution, .text, pre, td { unicode-bidi: plaintext; }" in page
