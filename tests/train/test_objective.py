import json
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ledom.core.direction import Direction
from ledom.core.errors import InputError, RecipeError
from ledom.core.records import Candidate, Document, Problem, write_records
from ledom.data.packing import pack
from ledom.data.prepare import read_split
from ledom.lm.backends.local import HFLanguageModel
from ledom.model.checkpoint import build_model, load_checkpoint, save_checkpoint
from ledom.rerank.score import score_candidates
from ledom.text.pair_format import PairFormat
from ledom.train.loop import packed_losses, train
from ledom.train.objective import ObjectiveConfig, PairBatches, read_wrong_solutions
from ledom.train.start import training_batches

FORWARD, REVERSE = Direction.FORWARD, Direction.REVERSE
QUESTION = "Ava has 3 pens and buys 4. How many?"
RIGHT, WRONG = "3 + 4 = 7\n#### 7", "3 * 4 = 12\n#### 12"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, tiny_config):
    """The folder of a random model, one per direction."""
    folders = {}
    for direction in Direction:
        folder = tmp_path_factory.mktemp("models") / str(direction)
        save_checkpoint(
            folder, build_model(tiny_config, tokenizer, 7), tokenizer, direction, PairFormat()
        )
        folders[direction] = folder
    return folders


def batches_of(config, direction, tokenizer, problems=None, wrong=None, seq_len=200):
    problems = problems or [Problem(id="a", question=QUESTION, answer="7", solution=RIGHT)]
    wrong = {"a": [WRONG]} if wrong is None else wrong
    return PairBatches(problems, wrong, config, direction, tokenizer, PairFormat(), 4, seq_len, 0)


def scored(folder, text):
    """log P of the target and of its tokens, as used in selection."""
    problem = Problem(id="a", question=QUESTION, answer="7")
    candidate = Candidate(problem_id="a", index=0, text=text)
    return next(score_candidates([problem], [candidate], HFLanguageModel(folder)))[0]


@pytest.mark.slow
@pytest.mark.parametrize("direction", Direction)
def test_the_terms_use_the_same_scores_as_selection(trained, tokenizer, direction):
    """The loop computes them in one packed row, the scorer one candidate at a time."""
    folder = trained[direction]
    right, wrong = scored(folder, RIGHT), scored(folder, WRONG)
    model = load_checkpoint(folder).model
    expected = {
        "target": -right.logprob / right.num_tokens,
        "contrastive": math.log(1 + math.exp(wrong.logprob - right.logprob)),
    }
    for term, value in expected.items():
        config = ObjectiveConfig(all_tokens=0, **{term: 1.0})
        batches = batches_of(config, direction, tokenizer)
        with torch.no_grad():
            losses = packed_losses(model, pack(batches[0].windows, direction, tokenizer.eos_id))
            assert batches[0].loss(losses).item() == pytest.approx(value, abs=1e-3), term


@torch.no_grad()
def test_all_tokens_excludes_wrong_solutions(trained, tokenizer):
    """Their text is contrasted with the right one's, never imitated."""
    model = load_checkpoint(trained[REVERSE]).model
    batches = batches_of(ObjectiveConfig(contrastive=1e-9), REVERSE, tokenizer)
    assert len(batches[0].windows) == 2
    ids = torch.tensor([tokenizer.eos_id, *tokenizer.encode(f"{QUESTION}\n\n{RIGHT}").ids])
    ids = torch.cat([ids, ids[:1]]).flip(0)
    plain = cross_entropy(model(input_ids=ids[None, :-1], use_cache=False).logits[0], ids[1:])
    losses = packed_losses(model, pack(batches[0].windows, REVERSE, tokenizer.eos_id))
    assert batches[0].loss(losses).item() == pytest.approx(plain.item(), abs=1e-5)


def test_an_epoch_uses_every_problem_once_in_its_own_order(tokenizer, problems):
    config = ObjectiveConfig(target=1)
    batches = batches_of(config, REVERSE, tokenizer, problems[:12], {}, seq_len=600)
    epochs = [
        [window.tolist() for step in steps for window in batches[step].windows]
        for steps in ((0, 1, 2), (3, 4, 5))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert len({tuple(ids) for ids in epochs[0]}) == len(epochs[0]) == 12


def test_unusable_training_problems_are_refused(tokenizer):
    config = ObjectiveConfig(contrastive=1, negatives="w.jsonl")
    with pytest.raises(InputError, match="none of the pairs fits into the 5 tokens"):
        batches_of(config, REVERSE, tokenizer, seq_len=5)
    with pytest.raises(InputError, match=r"w\.jsonl: none of the problems has a wrong solution"):
        batches_of(config, REVERSE, tokenizer, wrong={})


def test_pairs_that_do_not_fit_are_counted(tokenizer, caplog):
    """Too long are the right pair of b and one wrong pair of each."""
    problems = [
        Problem(id="a", question=QUESTION, answer="7", solution=RIGHT),
        Problem(id="b", question=QUESTION, answer="7", solution=f"{RIGHT}\n" * 9),
    ]
    wrong = {"a": [WRONG, f"{WRONG}\n" * 9], "b": [WRONG * 9]}
    size = len(tokenizer.encode(f"{QUESTION}\n\n{WRONG}").ids) + 1
    config = ObjectiveConfig(contrastive=1)
    batches = batches_of(config, REVERSE, tokenizer, problems, wrong, seq_len=size)
    assert len(batches[0].windows) == 2
    assert caplog.messages == [
        f"3 of 5 pairs have more than the {size} tokens of train.seq_len: skipped"
    ]


def test_a_wrong_solution_equal_to_the_right_one_is_skipped(tokenizer):
    """Without its words it is the same, and contrasted with itself it would teach nothing."""
    problem = Problem(id="a", question=QUESTION, answer="7", solution=f"So {RIGHT}")
    wrong = {"a": [f"Or {RIGHT}", WRONG, f"Or {WRONG}"]}
    style = PairFormat(style="equations")
    config = ObjectiveConfig(contrastive=1)
    batches = PairBatches([problem], wrong, config, REVERSE, tokenizer, style, 4, 200, 0)
    assert batches._wrong[0][0].ids.tolist() != batches._right[0].ids.tolist()
    assert len(batches._wrong[0]) == 1


def test_wrong_solutions_for_a_repeated_id_are_refused(tmp_path):
    file = tmp_path / "candidates.jsonl"
    write_records(file, [Candidate(problem_id="a", index=0, text="#### 7", correct=False)])
    twice = [Problem(id="a", question=q, answer=a) for q, a in (("3 + 3?", "6"), ("3 + 4?", "7"))]
    with pytest.raises(InputError, match="the id 'a' occurs twice"):
        read_wrong_solutions(file, twice)


def test_documents_do_not_contain_pairs(recipe, data, tmp_path):
    file = tmp_path / "documents.jsonl"
    write_records(file, [Document(id=i, text="so") for i in "abc"])
    plain = recipe.data.model_copy(update={"train": str(file)})
    asked = recipe.model_copy(update={"data": plain, "objective": ObjectiveConfig(target=1)})
    with pytest.raises(RecipeError, match="which holds documents; objective.target and"):
        training_batches(asked, REVERSE, data)


def test_wrong_solutions_are_those_labeled_or_found_wrong(tmp_path):
    file = tmp_path / "candidates.jsonl"
    rows = [("a", WRONG, None), ("a", RIGHT, None), ("a", WRONG, False), ("a", "x", True)]
    rows += [("b", WRONG, False), ("a", "no answer", False)]
    write_records(
        file,
        [Candidate(problem_id=p, index=i, text=t, correct=c) for i, (p, t, c) in enumerate(rows)],
    )
    problem = Problem(id="a", question=QUESTION, answer="7", solution=RIGHT)
    assert read_wrong_solutions(file, [problem]) == {"a": [WRONG, "no answer"]}
    for unknown in (None, " "):  # nothing says that RIGHT, or WRONG without its label, is wrong
        problem.answer = unknown
        assert read_wrong_solutions(file, [problem]) == {"a": [WRONG, "no answer"]}
    write_records(file, [Candidate(problem_id="a", index=0, text=RIGHT)])
    assert read_wrong_solutions(file, [problem]) == {}


@pytest.mark.slow
def test_a_contrast_teaches_the_model_to_prefer_the_right_solution(trained, tokenizer):
    model = load_checkpoint(trained[REVERSE]).model
    batches = batches_of(ObjectiveConfig(all_tokens=0, contrastive=1), REVERSE, tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values = []
    for step in range(20):
        batch = batches[step]
        loss = batch.loss(packed_losses(model, pack(batch.windows, REVERSE, tokenizer.eos_id)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < math.log(2) / 2  # the right one is by far the more likely
    assert values[-1] < values[0]


@pytest.mark.slow
def test_fine_tuning_starts_from_a_checkpoint_and_resumes_exactly(recipe, data, tmp_path):
    problems = read_split(recipe.data)[0]
    solutions = [problem.solution for problem in problems]
    write_records(
        tmp_path / "wrong.jsonl",
        [
            Candidate(problem_id=problem.id, index=0, text=other, correct=False)
            for problem, other in zip(problems, solutions[1:] + solutions[:1], strict=True)
        ],
    )
    given = build_model(recipe.model, data.tokenizer, seed=3)
    save_checkpoint(tmp_path / "given", given, data.tokenizer, REVERSE, PairFormat())
    objective = ObjectiveConfig(
        contrastive=0.01, target=1.0, negatives=str(tmp_path / "wrong.jsonl")
    )
    tuned = recipe.model_copy(
        update={
            "init_from": str(tmp_path / "given"),
            "model": None,
            "objective": objective,
            "optim": recipe.optim.model_copy(update={"steps": 10, "decay_steps": 4}),
            "train": recipe.train.model_copy(update={"seq_len": 400}),
        }
    )

    def interrupt(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tuned, REVERSE, data, tmp_path / "run", interrupt)
    train(tuned, REVERSE, data, tmp_path / "run")
    train(tuned, REVERSE, data, tmp_path / "whole")
    weights = [(tmp_path / n / "model/model.safetensors").read_bytes() for n in ("run", "whole")]
    assert weights[0] == weights[1]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 10
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.5
