"""Finds the question and the answer in the text that a trainer sends.

A trainer sends a prompt as its policy read it: with a chat template and special tokens, and
possibly truncated. A reward model trained on plain questions must not see this markup.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from unicodedata import normalize

from ledom.core.errors import InputError
from ledom.text.answer_patterns import FINAL
from ledom.text.answers import with_tags

__all__ = [
    "Messages",
    "answer_of",
    "content_of",
    "has_thought_marks",
    "is_open_thought",
    "question_of",
    "response_in",
    "split_dialog",
]

Messages = Collection[Mapping[str, object]]

_TURN = re.compile(
    r"<\|im_start\|>(\w+)(?:<\|im_sep\|>)?"  # ChatML: Qwen, Yi ...; Phi-4
    r"|<\|(?:start_header_id|header_start|start_of_role)\|>(\w+)"  # Llama 3 and 4, Granite
    r"<\|(?:end_header_id|header_end|end_of_role)\|>"
    r"|<(?:start_of_turn|\|turn)>(\w+)"  # Gemma; Gemma 4
    r"|<\|start\|>(\w+)(?: to=\w+)?(?:<\|channel\|>\w+)?<\|message\|>"  # gpt-oss, Muse
    r"|<\|im_(system|user|assistant)\|>\w*<\|im_middle\|>"  # Kimi
    r"|<\|(SYSTEM|USER|CHATBOT)_TOKEN\|>"  # Command
    r"|<\|(system|user|assistant)\|>"  # Phi-3, Zephyr, GLM
    r"|\[\|(system|user|assistant)\|\]"  # EXAONE
    r"|<[｜|](User|Assistant)[｜|]>"  # DeepSeek
    r"|(\[/?INST\])"  # Llama 2, Mistral
    r"|<seed:bos>(system|user|assistant|tool)"  # Seed-OSS
    r"|\]~b\](\w+)"  # MiniMax
)
_ROLES = {"[inst]": "user"} | dict.fromkeys(("model", "chatbot", "ai", "[/inst]"), "assistant")
_NO_QUESTION = re.compile(  # in the user's turn: of Llama 2, of GLM
    r"\A\s*<<SYS>>.*?<</SYS>>|/nothink\s*\Z", re.DOTALL
)
_SPECIAL = re.compile(
    r"<[|｜][^<>\s|｜]{3,40}[|｜]>"  # at least 3: <|x|> is a mean in physics
    r"|\[\|(?:system|user|assistant|endofturn)\|\]"
    r"|<\|channel>"  # Gemma 4's thought, if nothing ends it
    r"|</?s>|<(?:eos|bos|pad|end_of_turn|turn\||seed:[be]os|BOS_TOKEN|EOS_TOKEN)>|\[e~\["
)
_OPENINGS = re.compile(r"(?:\s*(?:<(?:s|bos|BOS_TOKEN)>|<[|｜]begin[^<>\s|｜]{1,40}[|｜]>))*")
_LINE_END = r"(?>\r\n|\r|\n)"  # atomic: \r\n is one line end, never two
_SHORTEST_OVERLAP = 8  # characters of a truncated prompt that suffice to find its response


def question_of(prompt: str | Messages) -> str:
    """The user's last message in a list of messages or a chat template; plain text is unchanged.

    Raises `InputError` for a list of messages without a user message, and for an unknown template.

    >>> question_of("<|im_start|>user\\nHow many?<|im_end|>\\n<|im_start|>assistant\\n")
    'How many?'
    """
    if not isinstance(prompt, str):
        said = [content_of(message) for message in prompt if message.get("role") == "user"]
        if not said:
            raise InputError("the prompt has no user message; send one")
        question = said[-1].strip()
        return question_of(question) if _is_rendered(question) else question
    said = [text for role, text in _turns(prompt) if role == "user"]
    question = said[-1] if said else _plain(prompt)
    if not question and (mark := _SPECIAL.search(prompt)):
        raise InputError(
            f"the prompt has chat markup ({mark[0]!r}), but no question was found in it; send "
            "plain text, or messages where the protocol has them"
        )
    return question


def answer_of(response: str | Messages) -> str:
    """A response up to its first special token. In a list of messages: the assistant's last one.

    >>> answer_of(" It is 7.<|im_end|>\\n<|endoftext|>")
    'It is 7.'
    """
    if not isinstance(response, str):
        said = [content_of(m) for m in response if m.get("role") in ("assistant", None)]
        return said[-1].strip() if said else ""
    return _plain(with_tags(FINAL.split(response)[-1]))


def has_thought_marks(response: str) -> bool:
    """Whether a response has special tokens by which `answer_of` tells a thought from an answer.

    >>> [has_thought_marks(text) for text in ("<|channel|>final<|message|>7", "[THINK]3 + 4", "7")]
    [True, True, False]
    """
    channels = "<|channel|>", "<|channel>"
    return any(mark in response for mark in channels) or with_tags(response) != response


def is_open_thought(prompt: str) -> bool:
    """Whether a prompt ends with the start of a thought, which its response continues.

    >>> is_open_thought("2 + 2?<|im_end|>\\n<think>\\n"), is_open_thought("2 + 2?<think></think>")
    (True, False)
    """
    return with_tags(prompt.rstrip()[-40:]).endswith("<think>")


def response_in(query: str, prompt: str) -> str:
    """The part of `query` after the prompt. `query` may have lost the prompt's start.

    `query` was decoded from ids: its white space and the form of its accents may differ from the
    prompt's, and it may have a BOS token that the prompt lacks. Raises `InputError` if it does not
    start with the prompt or the end of it.

    >>> response_in("two plus two? Four.", "What is two plus two?")
    ' Four.'
    >>> response_in("<s> [INST] 2 + 2? [/INST] Four.", "<s>[INST] 2 + 2? [/INST]")
    ' Four.'
    """
    if query.startswith(prompt):
        return query[len(prompt) :]
    query, prompt = normalize("NFC", query), normalize("NFC", prompt)  # Qwen's tokenizer does this
    query = query[_after_openings(query) :].lstrip("\ufffd")
    known = "".join(prompt.split())
    length = _overlap(known, "".join(query.split()))
    if length < min(_SHORTEST_OVERLAP, len(known)):
        raise InputError(
            "the query does not start with its prompt or with the end of it; send prompt and "
            "response as one text"
        )
    ends = [0, *(end for end, sign in enumerate(query, start=1) if not sign.isspace())]
    return query[ends[length] :].removeprefix(prompt[len(prompt.rstrip()) :])


def split_dialog(text: str, between: str) -> tuple[str, str]:
    """The question and the answer of a dialog: by its chat markup, or split at `between`.

    The question is empty if the user has no turn before the assistant's last one. A line end of
    `between` may be `\\r\\n` or `\\r` in the text. Raises `InputError` if the text has neither
    markup nor `between`, and for markup without an assistant's turn.

    >>> split_dialog("2 + 2?|4", between="|")
    ('2 + 2?', '4')
    >>> split_dialog("<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello", between="|")
    ('Hi', 'Hello')
    """
    answer = None
    turns = _turns(text)
    for role, said in reversed(turns):
        if role == "assistant" and answer is None:
            answer = said
        elif role == "user" and answer is not None:
            return said, answer
    if answer is not None:
        return "", answer
    if turns:
        raise InputError("the dialog has no assistant turn; send question and answer")
    pattern = _LINE_END.join(map(re.escape, between.split("\n")))
    mark = re.search(pattern, text) if between else None
    if mark is None:
        raise InputError(
            f"the input has no chat markup and no {between!r}; send question and answer with this "
            "between them"
        )
    return text[: mark.start()], text[mark.end() :]


def _turns(text: str) -> list[tuple[str, str]]:
    """The (role, text) of each turn in a rendered chat template; none for plain text."""
    marks = list(_TURN.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns = []
    for mark, end in zip(marks, ends, strict=False):
        role = mark[mark.lastindex or 0].lower()
        said = _NO_QUESTION.sub("", text[mark.end() : end], count=1)
        turns.append((_ROLES.get(role, role), answer_of(said)))
    return turns


def _plain(text: str) -> str:
    """A text without the special tokens at its start, up to the next special token."""
    text = text[_after_openings(text) :].strip()
    return _SPECIAL.split(text, maxsplit=1)[0].strip()


def _is_rendered(content: str) -> bool:
    """Whether a message holds a chat template's text, as in NeMo RL: there is no word before it."""
    start = _after_openings(content)
    mark = _TURN.search(content, start)
    return mark is not None and not any(map(str.isspace, content[start : mark.start()]))


def _after_openings(text: str) -> int:
    """Where a text begins after the special tokens at its start."""
    opening = _OPENINGS.match(text)
    return opening.end() if opening else 0


def content_of(message: Mapping[str, object]) -> str:
    """The text of a message, whose content may be a list of parts.

    >>> content_of({"content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]})
    '2 + 2?'
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Iterable):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


def _overlap(left: str, right: str) -> int:
    """Length of the longest suffix of `left` that is a prefix of `right`, in linear time.

    This is the prefix function of Knuth, Morris and Pratt on `right + separator + left`.
    """
    text = f"{right[: len(left)]}\0{left[-len(right) :] if right else ''}"
    prefix = [0] * len(text)
    for i in range(1, len(text)):
        length = prefix[i - 1]
        while length and text[i] != text[length]:
            length = prefix[length - 1]
        prefix[i] = length + (text[i] == text[length])
    return prefix[-1] if right else 0
