import json
import random
import signal
import time
from itertools import pairwise

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.processors import ByteLevel, TemplateProcessing
from transformers import AutoTokenizer

from kills import die_at, in_a_child
from ledom.core.errors import CheckpointError, InputError, OutputError
from ledom.text.tokenizer import EOS_TOKEN, Tokenizer, refuse_to_replace, train_tokenizer
from stand_ins import sentencepiece_like

TEXTS = [
    "",
    "a",
    "How many apples?\n\n2 + 3 = 5\n#### 5",
    "naïve café – “quoted” …",
    "Сколько яблок у Маши?",
    "三个苹果加两个苹果",
    "🍎🍎 👩‍👩‍👧 🇮🇱",
    "כמה תפוחים? 5 ועוד 3",
    "كم عدد التفاحات؟ ٥ و ٣",
    "e\u0301 is not é",  # a combining accent must not be composed
    "tabs\tand  spaces \n\n\n and \r\n ends ",
    "\x00\x7f\ufeff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_a_round_trip(tokenizer, text):
    encoding = tokenizer.encode(text)
    assert tokenizer.decode(encoding.ids) == text
    assert len(encoding.offsets) == len(encoding.ids)
    assert tokenizer.eos_id not in encoding.ids


def test_every_single_token_survives_a_round_trip(tokenizer):
    assert tokenizer.decode([tokenizer.encode("7").ids[0]]) == "7"
    assert tokenizer.decode([]) == ""


def test_offsets_count_characters(tokenizer):
    assert tokenizer.encode("é5").offsets == [(0, 1), (0, 1), (1, 2)]  # two bytes, one character


def test_encoding_a_batch_equals_encoding_each_alone(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == []


def test_digits_are_single_tokens_even_if_frequent():
    tokenizer = train_tokenizer(["2024 costs 1000 and 2024, 1000"] * 50, 300)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("2024 costs 1000").ids]
    assert [p for p in pieces if p.strip().isdigit()] == [*"2024", " 1", "0", "0", "0"]
    assert "costs" in "".join(pieces)
    assert max(len(p) for p in pieces) > 2  # letters did merge


def test_digits_may_merge():
    tokenizer = train_tokenizer(["2024 costs 1000 and 2024, 1000"] * 50, 300, split_digits=False)
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode("2024 costs 1000").ids]
    assert pieces == ["2024", " costs", " 1000"]


def test_eos_is_left_out_of_decoded_text(tokenizer):
    ids = tokenizer.encode("one").ids
    assert tokenizer.decode([tokenizer.eos_id, *ids, tokenizer.eos_id]) == "one"


@pytest.mark.parametrize("size", [1, 256, 10**6 + 1, 2**63, 10**30])
def test_a_vocabulary_too_small_for_bytes_or_too_large_for_memory_is_refused(size):
    with pytest.raises(InputError, match=rf"vocab_size is {size}; give 257 .* to 1,000,000"):
        train_tokenizer(["a"], size)


def test_the_smallest_vocabulary_still_encodes_any_text():
    tokenizer = train_tokenizer(["abab"], 257)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode("abab שלום").ids) == "abab שלום"
    assert len(tokenizer.encode("שלום").ids) == 8


def test_an_unknown_eos_is_refused(tokenizer):
    with pytest.raises(CheckpointError, match=r"no token '</s>'.*eos_token"):
        Tokenizer(tokenizer.backend, "</s>")


@pytest.fixture
def folder(tmp_path):
    """A folder whose tokenizer has two candidates for EOS, <a> 1 and <b> 2, and `<|end|>` 0."""
    backend = RustTokenizer(models.WordLevel({EOS_TOKEN: 0, "<a>": 1, "<b>": 2}, unk_token="<a>"))
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("configured", "asked", "eos_id"),
    [
        (None, None, 0),
        ({"eos_token": "<a>"}, None, 1),
        ({"eos_token": {"content": "<b>", "lstrip": False}}, None, 2),
        ({"eos_token": "<a>"}, "<b>", 2),
        ({"eos_token": None}, None, 0),
        ({}, None, 0),
    ],
)
def test_which_token_is_eos(folder, configured, asked, eos_id):
    if configured is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(configured))
    assert Tokenizer.load(folder, asked).eos_id == eos_id
    assert Tokenizer.load(folder / "tokenizer.json", asked).eos_id == eos_id


@pytest.mark.parametrize("token", ["<a>", {"content": "<a>"}])
def test_eos_may_be_in_the_special_tokens_map(folder, token):
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": token}))
    assert Tokenizer.load(folder).eos_id == 1


@pytest.mark.parametrize("config", ["[]", '{"eos_token": 3}', '{"eos_token": {"content": 3}}'])
def test_a_senseless_config_is_refused(folder, config):
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: "):
        Tokenizer.load(folder)


def test_a_vocabulary_with_gaps_covers_its_largest_id(tmp_path):
    backend = RustTokenizer(models.WordLevel({EOS_TOKEN: 0, "a": 1, "b": 9}, unk_token="a"))
    assert backend.get_vocab_size() == 3
    assert Tokenizer(backend).vocab_size == 10


@pytest.fixture(params=["prepend", "metaspace"])
def llama_like(request):
    return sentencepiece_like(request.param)


@pytest.mark.parametrize("text", ["Once upon a time", "two  blanks", "it is 🎉 so", "a\n\nb c"])
def test_a_text_split_between_tokens_has_the_ids_of_the_whole(llama_like, tokenizer, text):
    """ids(a) + ids(b) = ids(ab); a dummy prefix at b would add a space."""
    for one in (llama_like, tokenizer):
        whole = one.encode(text)
        assert one.decode(whole.ids) == text
        cuts = [end for _, end in whole.offsets[:-1] if end]
        assert cuts
        for cut in cuts:
            joined = one.encode(text[:cut]).ids + one.encode_inside(text[cut:])
            # A character of several tokens ends at the same place more than once.
            assert joined == whole.ids, text[:cut]


def test_a_prefix_after_an_added_token_stays(llama_like):
    """Llama 2's tokenizer puts the prefix before each part of a text between added tokens."""
    llama_like.backend.add_tokens([AddedToken("[time]", normalized=False)])
    text = "Once upon<s>a time<s> it[time]is so"
    whole = llama_like.encode(text)
    for cut in {end for _, end in whole.offsets if text[end : end + 1] not in ("", "a", "i", " ")}:
        joined = llama_like.encode(text[:cut]).ids + llama_like.encode_inside(text[cut:])
        assert joined == whole.ids, text[:cut]


@pytest.mark.parametrize("form", ["prepend", "metaspace"])
def test_an_unknown_character_is_no_added_token(form):
    """<unk> is an added token, but in the place of a character it has no prefix."""
    one = sentencepiece_like(form, byte_fallback=False)
    unknown = one.encode("it is 🎉🎉 so").ids
    assert one.encode("it").ids + one.encode_inside(" is 🎉🎉 so") == unknown
    assert one.backend.token_to_id("<unk>") in unknown


def test_a_prefix_before_each_word_stays():
    """T5's, mBART's and XLM-RoBERTa's tokenizers split a text into words before they add spaces."""
    one, words = sentencepiece_like("metaspace"), pre_tokenizers.WhitespaceSplit()
    one.backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Metaspace()])
    text = "two  blanks, upon (a time)"
    whole = one.encode(text)
    for cut in (3, 4, 11, 12, 19, 20, 25):  # before and after spaces, and inside words
        assert one.encode(text[:cut]).ids + one.encode_inside(text[cut:]) == whole.ids, text[:cut]


def test_the_first_token_of_a_word_may_have_no_characters_or_later_ones():
    quoting, trimming = sentencepiece_like("metaspace"), train_tokenizer([], 257)
    quoting.backend.normalizer = normalizers.Replace("``", "a")
    quoting.backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trimming.backend.pre_tokenizer = pre_tokenizers.ByteLevel()  # with a dummy prefix
    trimming.backend.post_processor = ByteLevel(trim_offsets=True)
    for one, text in ((quoting, "``b"), (trimming, "<|end|>b")):
        assert one.encode("it").ids + one.encode_inside(text) == one.encode(f"it{text}").ids


def test_changes_to_the_backend_count_inside_a_document_too(llama_like):
    size = llama_like.vocab_size
    assert len(llama_like.encode_inside("so[new]so")) > 3
    llama_like.backend.add_tokens([AddedToken("[new]", normalized=False)])
    assert llama_like.backend.token_to_id("[new]") in llama_like.encode_inside("so[new]so")
    assert llama_like.vocab_size == size + 1
    llama_like.backend.encode_special_tokens = True
    spelled = llama_like.encode_inside("so<s>so")
    assert spelled == llama_like.encode("a so<s>so").ids[-len(spelled) :]
    assert llama_like.backend.token_to_id("<s>") not in spelled


def test_a_byte_level_prefix_is_also_a_dummy():
    made = RustTokenizer.from_str(train_tokenizer(["an end an end"] * 9, 270).backend.to_str())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    one = Tokenizer(made)
    assert one.encode("end").ids == one.encode_inside(" end")
    assert one.encode("an").ids + one.encode_inside(" end") == one.encode("an end").ids
    assert one.encode_inside("end") != one.encode("end").ids


def test_generated_text_keeps_its_first_space(llama_like):
    before, whole = llama_like.encode("Once upon").ids, llama_like.encode("Once upon a time").ids
    assert whole[: len(before)] == before
    assert llama_like.decode(whole[len(before) :]) == "a time"  # lost if decoded alone
    assert llama_like.decode_after(before, whole[len(before) :]) == " a time"
    assert llama_like.decode_after([], whole) == "Once upon a time"


def test_bytes_that_corrupt_preceding_text_are_kept_separate(llama_like):
    """Adjacent byte pieces are decoded together: one too many turns all of them into U+FFFD."""
    before, stray = llama_like.encode("so 🎉").ids, llama_like.token_id("<0x8E>")
    assert llama_like.decode([*before, stray]) == "so " + "\ufffd" * 5
    assert llama_like.decode_after(before, [stray]) == "\ufffd"


def test_a_literal_replacement_character_belongs_to_its_own_tokens(llama_like, tokenizer):
    """The piece of a character's last token is that character, found from the offsets."""
    for one in (llama_like, tokenizer):
        for text in ("a\ufffdb", "é\ufffd\ufffdé c", "\ufffd", "🎉\ufffd a\ufffd"):
            encoding = one.encode(text)
            ends = [end for _, end in encoding.offsets] + [len(text) + 1]
            expected, known = [], 0
            for end, later in pairwise(ends):
                expected.append(text[known:end] if end < later else "")
                known = end if end < later else known
            assert one.pieces(encoding.ids) == expected
    assert tokenizer.pieces([]) == []


def test_the_pieces_of_any_tokens_add_up_to_their_text(llama_like, tokenizer):
    rng = random.Random(0)
    for one in (llama_like, tokenizer):
        for _ in range(50):
            ids = [rng.randrange(one.vocab_size) for _ in range(20)]  # including special tokens
            assert "".join(one.pieces(ids)) == one.decode(ids)


def test_pieces_take_linear_time(tokenizer):
    seconds = []
    for size in (2_000, 20_000):
        ids = tokenizer.encode("2 + 3 = 5 é " * (size // 12)).ids
        start = time.process_time()
        tokenizer.pieces(ids)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 30 * max(seconds[0], 0.01)  # quadratic time would give 100


def test_half_a_surrogate_pair_is_refused(llama_like):
    for encode in (
        llama_like.encode,
        llama_like.encode_inside,
        lambda t: llama_like.encode_ids([t]),
    ):
        with pytest.raises(InputError, match=r"'so \\ud83d' holds one half of a surrogate pair"):
            encode("so \ud83d")
    with pytest.raises(InputError, match="half of a surrogate pair"):
        train_tokenizer(["a", "\udcff"], 300)


@pytest.mark.parametrize("bos", [[], ["<s>"]])
def test_a_vocabulary_may_lack_common_letters(bos, tmp_path):
    """A model of DNA has four letters, and often no token for other text."""
    vocabulary = {"A": 0, "C": 1, "G": 2, "T": 3, "<s>": 4, "</s>": 5}
    backend = RustTokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<s>", "</s>"])
    ends = [("<s>", 4), ("</s>", 5)]
    backend.post_processor = TemplateProcessing([*bos, "$A", "</s>"], special_tokens=ends)
    Tokenizer(backend, "</s>").save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_tokens == bos
    assert tokenizer.encode_inside("GATC") == tokenizer.encode("GATC").ids == [2, 0, 3, 1]
    assert tokenizer.pieces([2, 0]) == ["G", "A"]
    assert tokenizer.decode_after([2], [0]) == "A"
    among = [lambda t: tokenizer.encode_ids(["A", t]), lambda t: tokenizer.encode_batch([t, "A"])]
    for encode in (tokenizer.encode, tokenizer.encode_inside, *among):
        with pytest.raises(InputError, match="the tokenizer cannot encode 'GAN': .*Missing"):
            encode("GAN")


@pytest.mark.slow
@pytest.mark.parametrize("adds", [None, True, False])
@pytest.mark.parametrize("processed", [True, False])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_bos_is_what_transformers_adds(tmp_path, kind, adds, processed):
    one = sentencepiece_like("prepend")
    if processed:
        start = ("<s>", one.token_id("<s>"))
        one.backend.post_processor = TemplateProcessing("<s> $A", special_tokens=[start])
    one.save(tmp_path)
    config = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>"}
    config |= {} if adds is None else {"add_bos_token": adds}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path)
    # transformers 5 ignores `add_bos_token` if there is a tokenizer.json.
    assert loaded.bos_tokens == (["<s>"] if processed else [])
    bos = [loaded.token_id(token) for token in loaded.bos_tokens]
    found = AutoTokenizer.from_pretrained(tmp_path)("a time").input_ids
    assert bos + loaded.encode("a time").ids == found
    loaded.save(tmp_path / "exported")
    assert AutoTokenizer.from_pretrained(tmp_path / "exported")("a time").input_ids == found


def test_saving_and_loading_changes_nothing(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])
    assert train_tokenizer(["other"], 300).fingerprint != tokenizer.fingerprint


def test_saving_keeps_the_name_of_eos(folder, tmp_path):
    Tokenizer.load(folder, "<b>").save(tmp_path)
    assert Tokenizer.load(tmp_path).eos_token == "<b>"


def test_padding_and_truncation_in_a_file_are_switched_off(tmp_path, tokenizer):
    backend = RustTokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode_batch(["a", TEXTS[2]]) == tokenizer.encode_batch(["a", TEXTS[2]])


def test_random_merges_in_a_file_are_switched_off(tmp_path, tokenizer):
    """BPE dropout would give the same text different ids each time."""
    settings = json.loads(tokenizer.backend.to_str())
    settings["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    loaded = Tokenizer.load(tmp_path)
    for text in TEXTS:
        assert loaded.encode(text) == loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode_inside(text) == tokenizer.encode_inside(text)
    loaded.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_files_that_are_not_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_damaged_tokenizer_config_is_refused(folder):
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.load(folder)


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path, tokenizer):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/x/tokenizer.*: cannot be written"):
        tokenizer.save(tmp_path / "file" / "x")


@pytest.mark.slow
def test_a_kill_during_saving_leaves_the_old_or_the_new_one(tmp_path, tokenizer):
    other = train_tokenizer(["3 + 4 = 7"], 300)
    for moment in range(10):
        tokenizer.save(tmp_path)

        def save(moment=moment):
            die_at(tmp_path, moment)
            other.save(tmp_path)

        died = in_a_child(save) == signal.SIGKILL
        found = Tokenizer.load(tmp_path).fingerprint
        assert found in (tokenizer.fingerprint, other.fingerprint)
        assert died == (moment < 8)  # for each file: folder, temporary file, mode, name
    assert found == other.fingerprint


@pytest.mark.parametrize("owner", ["config.json", "manifest.json"])
def test_the_tokenizer_of_something_else_is_not_overwritten(tmp_path, owner):
    refuse_to_replace(tmp_path)
    (tmp_path / owner).write_text("{}")
    with pytest.raises(InputError, match=f"holds a .* \\({owner}\\), whose tokenizer would be"):
        refuse_to_replace(tmp_path)
