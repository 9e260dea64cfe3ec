"""Foreign tokenizers: sentencepiece protobufs and tiktoken pickles, read without their code."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ledom.core.errors import CheckpointError
from ledom.model.foreign.sentencepiece import read_sentencepiece
from ledom.model.foreign.tiktoken import read_tiktoken_pickle
from ledom.model.foreign.tokenizer_files import known_eos, read_tokenizer
from ledom.text.tokenizer import Tokenizer


def field(number: int, value: int | bytes | float) -> bytes:
    """A protobuf field with a number below 16."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
PIECES = [
    *[("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)],
    *[(f"<0x{byte:02X}>", BYTE) for byte in range(256)],
    *[("ab", NORMAL), ("▁a", NORMAL), ("▁ab", NORMAL), ("abc", NORMAL), ("[X]", USER)],
    *[("▁", NORMAL), ("a", NORMAL), ("b", NORMAL), ("c", NORMAL)],
]
AB, SPACE_A, SPACE_AB, ABC, X, SPACE, A, B, C = range(259, 268)


def model(trainer: bytes = b"", normalizer: bytes = b"", pieces: Any = None) -> bytes:
    """A BPE model with byte fallback that keeps spaces."""
    out = b""
    for rank, (text, kind) in enumerate(pieces or PIECES):
        score = 0.0 if kind != NORMAL else float(-rank)
        out += field(1, field(1, text.encode()) + field(2, score) + field(3, kind))
    return out + field(2, field(3, 2) + field(35, 1) + trainer) + field(3, field(4, 0) + normalizer)


@pytest.fixture
def spm(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model())
    return file


def ids(backend: Any, text: str) -> list[int]:
    return list(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Best pair first: a b -> ab (259); then only ▁ab (261) joins the space and ab.
        ("ab", [SPACE_AB]),
        ("a", [SPACE_A]),
        ("abc", [SPACE_AB, C]),  # ▁ab ranks above abc
        ("aabc", [SPACE_A, ABC]),
        (" ab", [SPACE, SPACE_AB]),  # the dummy prefix also precedes a space
        ("a  b", [SPACE_A, SPACE, SPACE, B]),
        ("cé", [SPACE, C, 3 + 0xC3, 3 + 0xA9]),  # bytes if there is no piece
        ("b[X]", [SPACE, B, X]),
        ("b[X]a[X] b", [SPACE, B, X, A, X, SPACE, B]),  # the dummy prefix is only at the start
    ],
)
def test_sentencepiece_ids_match_those_by_hand(spm: Path, text: str, expected: list[int]) -> None:
    backend = read_sentencepiece(spm)
    assert ids(backend, text) == expected
    assert backend.decode(expected) == text
    if "[X]" not in text:  # nor on a piece that is not in the text
        spm.write_bytes(model(pieces=[p if p[1] != USER else ("[Y]", CONTROL) for p in PIECES]))
        assert ids(read_sentencepiece(spm), text) == expected


def test_sentencepiece_works_without_a_dummy_prefix(spm: Path) -> None:
    spm.write_bytes(model(normalizer=field(3, 0)))
    backend = read_sentencepiece(spm)
    assert ids(backend, "ab") == [AB]
    assert backend.decode([SPACE_AB]) == " ab"
    spaces = [p if p[1] != USER else ("▁▁", USER) for p in PIECES]  # as in Gemma's file
    spm.write_bytes(model(normalizer=field(3, 0), pieces=spaces))
    backend = read_sentencepiece(spm)
    assert ids(backend, "a   ab") == [A, X, SPACE_AB]
    assert backend.decode([A, X, SPACE_AB]) == "a   ab"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a sentencepiece model"),
        (b"no protobuf at all", "not a sentencepiece model"),
        (field(1, field(1, 7)), "not a sentencepiece model"),  # a piece whose text is a number
        (model()[:-20], "not a sentencepiece model|kind is not BPE"),
        (model(trainer=field(3, 1)), "kind is not BPE"),
        (model(normalizer=field(2, b"rules")), "rewrites characters"),
        (model(normalizer=field(4, 1)), "removes spaces"),
        (model(normalizer=field(5, 0)), "keeps spaces"),
        (model(pieces=[*PIECES, ("a", NORMAL)]), "two pieces are the same"),
    ],
)
def test_other_sentencepiece_models_are_refused(spm: Path, content: bytes, message: str) -> None:
    spm.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_sentencepiece(spm)


def test_added_tokens_keep_their_ids(spm: Path) -> None:
    backend, files = read_tokenizer(spm.parent, ("<|SEP|>", "<|EOD|>"))
    assert files == [spm]
    assert [backend.token_to_id(t) for t in ("<|SEP|>", "<|EOD|>")] == [268, 269]
    listed = {"268": {"content": "<|pad|>", "special": True}}
    config = {"added_tokens_decoder": listed, "eos_token": {"content": "</s>"}}
    (spm.parent / "tokenizer_config.json").write_text(json.dumps(config))
    backend, _ = read_tokenizer(spm.parent, ("<|SEP|>", "<|EOD|>"))
    assert backend.token_to_id("<|pad|>") == 268
    assert backend.token_to_id("<|EOD|>") is None
    assert known_eos(spm.parent, backend, {"eos_token_id": 1}) == "</s>"
    (spm.parent / "added_tokens.json").write_text('{"<|far|>": 300}')
    with pytest.raises(
        CheckpointError, match="should have the id 300, but the next free one is 269"
    ):
        read_tokenizer(spm.parent)


@pytest.mark.parametrize("content", ["▁▁", "  "])
def test_a_list_of_added_tokens_does_not_unmatch_user_defined_spaces(
    spm: Path, content: str
) -> None:
    """Gemma's list says that this piece is matched before spaces are escaped; it is not."""
    spaces = [piece if piece[1] != USER else ("▁▁", USER) for piece in PIECES]
    spm.write_bytes(model(normalizer=field(3, 0), pieces=spaces))
    entry = {"content": content, "normalized": False, "special": False}
    listed = {"added_tokens_decoder": {str(X): entry}}
    (spm.parent / "tokenizer_config.json").write_text(json.dumps(listed))
    backend, _ = read_tokenizer(spm.parent)
    assert ids(backend, "a   ab") == [A, X, SPACE_AB]


def test_added_tokens_take_the_spaces_that_their_list_says(spm: Path) -> None:
    """Phi-3's tokens take the white space after them."""
    entries = [{"content": "<|left|>", "lstrip": True}, {"content": "<|right|>", "rstrip": True}]
    listed = {"added_tokens_decoder": {str(268 + i): entry for i, entry in enumerate(entries)}}
    (spm.parent / "tokenizer_config.json").write_text(json.dumps(listed))
    backend, _ = read_tokenizer(spm.parent)
    assert ids(backend, "ab <|left|> ab") == [SPACE_AB, 268, SPACE_AB]
    assert ids(backend, "ab <|right|> ab") == [SPACE_AB, SPACE, 269, AB]


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": ["<|pad|>"]},
        {"added_tokens_decoder": {"pad": {"content": "<|pad|>"}}},
        {"added_tokens_decoder": {"268": "<|pad|>"}},
        {"added_tokens_decoder": {"268": {}}},
        {"bos_token": {}},
    ],
)
def test_damaged_lists_of_added_tokens_are_refused(spm: Path, settings: Any) -> None:
    (spm.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json .* is damaged"):
        read_tokenizer(spm.parent)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (None, []),
        ({"tokenizer_class": "LlamaTokenizer"}, ["<s>"]),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, []),
        ({"tokenizer_class": "NeoTokenizer", "add_bos_token": True}, ["<s>"]),
        ({"tokenizer_class": "NeoTokenizer"}, []),
        ({"add_bos_token": True, "bos_token": {"content": "</s>"}}, ["</s>"]),
        ({"add_bos_token": True, "bos_token": None}, []),
    ],
)
def test_bos_is_added_if_the_files_say_so(spm: Path, settings: Any, expected: list[str]) -> None:
    if settings is not None:
        (spm.parent / "tokenizer_config.json").write_text(json.dumps(settings))
    read = Tokenizer(read_tokenizer(spm.parent)[0], "</s>")
    assert read.bos_tokens == expected
    assert read.encode("ab").ids == [SPACE_AB]


def test_sentencepiece_itself_agrees(problems: Any) -> None:
    """On a real file named by LEDOM_SENTENCEPIECE_MODEL (such as MAP-Neo's tokenizer.model)."""
    file = os.environ.get("LEDOM_SENTENCEPIECE_MODEL")
    if not file:
        pytest.skip("LEDOM_SENTENCEPIECE_MODEL names no tokenizer.model")
    theirs = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=file)
    backend = read_sentencepiece(Path(file))
    texts = [p.question for p in problems] + [" a", "  a  b ", "\n\t x", "é🍎 漢字 12345", "a▁b"]
    for text in texts:
        assert ids(backend, text) == theirs.encode(text)
        assert backend.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


RANKS = {bytes([byte]): byte for byte in range(256)} | {
    b"ab": 256,
    b"bc": 257,
    b" ab": 258,
    b"abc": 259,
}
SPECIAL = {"<|bos|>": 260, "<|user_start|>": 261}


def encoding(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """A tiktoken.Encoding as `pickle` sees it."""
    module = ModuleType("tiktoken.core")
    module.Encoding = type("Encoding", (), {"__module__": "tiktoken.core"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiktoken", ModuleType("tiktoken"))
    monkeypatch.setitem(sys.modules, "tiktoken.core", module)
    made = module.Encoding()
    state = {"name": "rustbpe", "pat_str": r" ?\w+|\s+", "mergeable_ranks": RANKS}
    made.__dict__ |= state | {"special_tokens": SPECIAL} | changes
    return made


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tiktoken_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps(encoding(monkeypatch), protocol))
    monkeypatch.undo()
    backend = read_tiktoken_pickle(file)
    assert "tiktoken" not in sys.modules
    assert ids(backend, "ab abc") == [256, 258, ord("c")]  # " abc": ab, then " ab"; c is left
    assert ids(backend, "abc") == [259]  # a whole piece is a token
    assert ids(backend, "xbc") == [ord("x"), 257]
    assert ids(backend, "é") == [0xC3, 0xA9]
    assert ids(backend, "<|user_start|>ab") == [261, 256]
    assert backend.decode([256, 258, 0xC3, 0xA9]) == "ab abé"


@pytest.mark.parametrize(
    ("pattern", "more", "text", "expected"),
    [
        # {1,3}+ takes three digits at most: 123 and 45. As another repetition, it would take five,
        # of which 34 merges first.
        (r"\p{N}{1,3}+|.", {b"34": 256, b"12": 257, b"123": 258}, "12345", [258, 52, 53]),
        # $ is the end of the text, not of a line
        (r"a+$|a|\n", {b"aa": 256}, "aa\naa", [97, 97, 10, 256]),
        (r"^a+|a|[$^]|\n", {b"aa": 256}, "aa\naa$", [256, 10, 97, 97, 36]),
    ],
)
def test_patterns_mean_what_they_mean_to_tiktoken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    more: Any,
    text: str,
    expected: list[int],
) -> None:
    """The ids are tiktoken's own."""
    ranks = {bytes([byte]): byte for byte in range(256)} | more
    made = encoding(monkeypatch, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(made))
    backend = read_tiktoken_pickle(tmp_path / "tokenizer.pkl")
    assert ids(backend, text) == expected


def test_a_pattern_that_repeats_a_group_possessively_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    made = encoding(monkeypatch, pat_str="(ab){2}+|.", mergeable_ranks=ranks, special_tokens={})
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(made))
    with pytest.raises(CheckpointError, match=r"repeats a group with \{2\}\+, .*; give a"):
        read_tiktoken_pickle(tmp_path / "tokenizer.pkl")


def test_a_pickle_of_only_a_name_is_refused(tmp_path: Path) -> None:
    """So tiktoken pickles the encodings that it knows."""
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(b"\x80\x04\x8c\rtiktoken.core\x8c\x08Encoding\x93)\x81\x8c\x04gpt2b.")
    with pytest.raises(CheckpointError, match="only names tiktoken's encoding 'gpt2'; give its"):
        read_tiktoken_pickle(file)


class Calls:
    """A pickle that calls something."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def test_a_pickle_that_calls_something_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, ran = tmp_path / "tokenizer.pkl", tmp_path / "ran"
    attacks: list[Any] = [
        Calls(os.system, f"touch {ran}"),
        encoding(monkeypatch, pat_str=Calls(os.system, f"touch {ran}")),
        {"a": Calls(eval, f"open({str(ran)!r}, 'w')")},
        Calls(importlib.import_module, "this"),
    ]
    for attack in attacks:
        file.write_bytes(pickle.dumps(attack))
        with pytest.raises(CheckpointError, match=r"tokenizer\.pkl: the pickle calls "):
            read_tiktoken_pickle(file)
    assert not ran.exists()
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", pickle.dumps({"pat_str": ""}), pickle.dumps([1, 2]), pickle.dumps("text")],
)
def test_other_pickles_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.pkl: "):
        read_tiktoken_pickle(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mergeable_ranks": RANKS | {b"xyz": 400}}, "not a merge of two others"),
        ({"special_tokens": {"<|bos|>": 300}}, "leaves a gap"),
        ({"pat_str": "("}, "not a pickled tiktoken encoding"),
    ],
)
def test_an_impossible_encoding_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    file = tmp_path / "tokenizer.pkl"
    file.write_bytes(pickle.dumps(encoding(monkeypatch, **changes)))
    with pytest.raises(CheckpointError, match=message):
        read_tiktoken_pickle(file)


def test_gpt2s_two_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<|endoftext|>": 4}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    backend, files = read_tokenizer(tmp_path)
    assert [file.name for file in files] == ["vocab.json", "merges.txt"]
    assert ids(backend, "ab b") == [2, 3, 1]
    assert known_eos(tmp_path, backend, {}) == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "GPT2Tokenizer", "OpenAIGPTTokenizer"])
def test_two_files_are_read_as_by_their_class(tmp_path: Path, kind: str) -> None:
    """Qwen2 splits digits; OPT names its special tokens in another file and has a BOS."""
    symbols = [*bytes_to_unicode().values(), "12", "Ġ12", "</s>", "<pad>", "</w>", "a</w>"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n1 2\nĠ 12\na </w>\n")
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    settings = {"tokenizer_class": kind, "add_bos_token": True, "add_prefix_space": True, **special}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    read = Tokenizer(read_tokenizer(tmp_path)[0], "</s>")
    plain = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("12 and 12", "a</s>b", "cafe\u0301"):
        bos = [read.token_id(token) for token in read.bos_tokens]
        assert bos + read.encode(text).ids == plain(text)["input_ids"]
    assert {vocabulary["</s>"], vocabulary["<pad>"]} <= read.special_ids


def test_a_class_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
    with pytest.raises(CheckpointError, match="CTRLTokenizer cannot be saved as tokenizer.json"):
        read_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer here .* --tokenizer"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        read_tokenizer(tmp_path)
