import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from ledom.core.errors import InputError
from ledom.text.pair_format import PairFormat
from ledom.text.tokenizer import EOS_TOKEN, Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def two_chars() -> Tokenizer:
    """Every two characters form a token (id 1), so spans can be counted by hand; EOS is 0."""
    backend = RustTokenizer(models.WordLevel({EOS_TOKEN: 0, "?": 1}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]{1,2}"), "isolated")
    return Tokenizer(backend)


def encode(tokenizer, question, solution, template="{question}\n\n{solution}", special=True):
    eos = [tokenizer.eos_id] if special else []
    (pair,) = PairFormat(template).encode(tokenizer, [(question, solution)], eos, eos)
    return pair


def test_spans_equal_those_by_hand(two_chars):
    pair = encode(two_chars, "abcd", "efg")  # EOS ab cd \n\n ef g EOS
    assert pair.ids == [0, 1, 1, 1, 1, 1, 0]
    assert pair.question == (1, 3)
    assert pair.solution == (4, 6)
    assert pair.offsets == [(0, 0), (0, 2), (2, 4), (0, 0), (0, 2), (2, 3), (0, 0)]


def test_encoding_without_special_tokens(two_chars):
    pair = encode(two_chars, "abcd", "efg", special=False)
    assert (pair.ids, pair.question, pair.solution) == ([1] * 5, (0, 2), (3, 5))
    assert pair.offsets == [(0, 2), (2, 4), (0, 0), (0, 2), (2, 3)]


def test_a_token_across_question_and_solution_belongs_to_the_solution(two_chars):
    pair = encode(two_chars, "abc", "de", "{question}{solution}")  # EOS ab cd e EOS
    assert (pair.question, pair.solution) == ((1, 2), (2, 4))
    assert pair.offsets == [(0, 0), (0, 2), (0, 1), (1, 2), (0, 0)]


def test_a_token_across_a_literal_belongs_to_the_later_part(two_chars):
    pair = encode(two_chars, "abc", "de")  # EOS ab c\n \nd e EOS
    assert (pair.question, pair.solution) == ((1, 2), (3, 5))
    assert pair.offsets == [(0, 0), (0, 2), (0, 0), (0, 1), (1, 2), (0, 0)]


def test_literals_may_come_before_and_after(two_chars):
    pair = encode(two_chars, "ab", "cd", "Q:{question}A:{solution}..")
    # EOS Q: ab A: cd .. EOS
    assert (pair.question, pair.solution) == ((2, 3), (4, 5))


@pytest.mark.parametrize(
    ("question", "solution", "spans"),
    [
        ("", "abcd", ((1, 1), (2, 4))),  # EOS \n\n ab cd EOS
        ("abcd", "", ((1, 3), (4, 4))),  # EOS ab cd \n\n EOS
        ("", "", ((1, 1), (2, 2))),  # EOS \n\n EOS
    ],
)
def test_empty_fields_have_empty_spans(two_chars, question, solution, spans):
    pair = encode(two_chars, question, solution)
    assert (pair.question, pair.solution) == spans


def test_encoding_many_pairs_equals_encoding_each_alone(tokenizer):
    pairs = [("How many?", "5"), ("", "x"), ("a much longer question than the others", "")]
    together = PairFormat().encode(tokenizer, pairs, [0], [0])
    assert together == [encode(tokenizer, *pair) for pair in pairs]


def test_every_byte_of_an_emoji_belongs_to_the_same_character(tokenizer):
    pair = encode(tokenizer, "🍎", "7")  # the tokenizer has seen no emoji: four bytes, four tokens
    assert pair.question == (1, 5)
    assert pair.offsets[1:5] == [(0, 1)] * 4


@pytest.mark.parametrize(
    ("question", "solution"),
    [
        ("Сколько яблок у Маши?", "У Маши 2 + 3 = 5 яблок.\n#### 5"),
        ("כמה תפוחים יש לדנה?", "2 + 3 = 5\n#### 5"),
        ("👩‍👩‍👧 have 🍎🍎 + 🍎", "so 3 🍎"),
        ("a b  c \n", "  d\n\n e"),
    ],
)
def test_spans_cover_the_fields_of_any_script(tokenizer, question, solution):
    pair = encode(tokenizer, question, solution)
    text = question + "\n\n" + solution
    assert tokenizer.decode(pair.ids) == text
    assert (pair.ids[0], pair.ids[-1]) == (tokenizer.eos_id, tokenizer.eos_id)
    # A token belongs where its last character is, which the lengths of decoded prefixes show.
    starts, ends = len(question), len(question) + 2
    places = [offsets[1] for offsets in tokenizer.encode(text).offsets]
    assert pair.question == (1, 1 + sum(place <= starts for place in places))
    assert pair.solution == (1 + sum(place <= ends for place in places), len(pair.ids) - 1)
    covered = {i for start, end in pair.offsets[slice(*pair.solution)] for i in range(start, end)}
    assert covered == set(range(len(solution)))


@pytest.mark.parametrize("trim", [False, True])
def test_truncation_ends_even_if_offsets_omit_spaces(trim):
    """Pythia's and RoBERTa's offsets omit spaces: truncation left one and never ended."""
    tokenizer = train_tokenizer([], 257)  # a token per byte
    tokenizer.backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    for room, kept in ((7, "a b c  "), (6, "a b c "), (5, "a b c"), (4, "a b "), (2, "a ")):
        ((pair, text),) = PairFormat("{question}{solution}").fit(
            tokenizer, [("q", "a b c   ")], [], [], room=room
        )
        assert text.rstrip() == kept.rstrip()
        assert len(pair.ids) - 1 <= room


def test_a_solution_loses_the_tokens_that_do_not_fit(two_chars):
    pairs = [("abcd", "efghij"), ("abcd", "ef")]  # EOS ab cd \n\n ef gh ij EOS
    for room, kept in ((7, "efghij"), (6, "efgh"), (5, "ef")):
        fitted = PairFormat().fit(two_chars, pairs, [0], [0], room=room)
        assert [solution for _, solution in fitted] == [kept, "ef"]
        assert fitted[0][0] == encode(two_chars, "abcd", kept)
    with pytest.raises(InputError, match=r"'abcd' has 2 tokens, .* no room .* the 4 tokens of"):
        PairFormat().fit(two_chars, pairs, [0], [0], room=4)


def test_the_format_knows_what_each_direction_reads_first():
    pair_format = PairFormat("Q: {question}\nA: {solution}\nend")
    assert pair_format.before_solution("why?") == "Q: why?\nA: "
    assert pair_format.after_question("because") == "\nA: because\nend"
    assert pair_format.render("why?", "because") == "Q: why?\nA: because\nend"


def test_braces_in_the_fields_are_left_alone():
    assert PairFormat().render("{solution} {x}", "{question}") == "{solution} {x}\n\n{question}"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{question}",
        "{solution}",
        "{solution} {question}",
        "{Question} {solution}",
        "{question} {question} {solution}",
        "{question} {solution} {solution}",
        "{solution} {question} {solution}",
    ],
)
def test_a_template_without_each_field_once_in_order_is_refused(template):
    with pytest.raises(InputError, match="needs {question} and then {solution}"):
        PairFormat(template)


# No braces, so that literals form a template; surrogates are not text.
SHORT = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=7)


@pytest.mark.slow
@settings(max_examples=100)
@given(before=SHORT, question=SHORT, between=SHORT, solution=SHORT, after=SHORT)
def test_every_token_belongs_to_the_part_of_its_last_character(
    two_chars, before, question, between, solution, after
):
    """Counted by hand: with two characters per token, character c is in token c // 2."""
    template = f"{before}{{question}}{between}{{solution}}{after}"
    pair = encode(two_chars, question, solution, template, special=False)
    text = before + question + between + solution + after
    assert pair.ids == [1] * -(-len(text) // 2)
    start = len(before)
    for span, field in ((pair.question, question), (pair.solution, solution)):
        end = start + len(field)
        last = [min(2 * token + 1, len(text) - 1) for token in range(len(pair.ids))]
        mine = [token for token, place in enumerate(last) if start <= place < end]
        assert list(range(*span)) == mine
        for token in mine:
            first = max(0, 2 * token - start)  # a straddling token counts only for its own part
            assert pair.offsets[token] == (first, last[token] + 1 - start)
        start = end + len(between)
    fields = {*range(*pair.question), *range(*pair.solution)}
    assert all(pair.offsets[i] == (0, 0) for i in range(len(pair.ids)) if i not in fields)
