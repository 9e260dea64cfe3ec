"""Extracting question and answer from chat markup, special tokens and truncated prompts."""

from __future__ import annotations

import time

import pytest

from ledom.core.errors import InputError
from ledom.rerank.candidates import is_blank
from ledom.serve.chat_text import (
    answer_of,
    has_thought_marks,
    is_open_thought,
    question_of,
    response_in,
    split_dialog,
)
from ledom.text.answers import split_thought
from waiting import SECONDS

TEMPLATES = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "It is 7.<|im_end|>\n",
    ),
    "llama 3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "It is 7.<|eot_id|>",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nHow many?<end_of_turn>\n<start_of_turn>model\n",
        "It is 7.<end_of_turn>\n",
    ),
    "llama 2": ("<s>[INST] How many? [/INST]", " It is 7. </s>"),
    "phi": ("<|user|>\nHow many?<|end|>\n<|assistant|>\n", "It is 7.<|end|>"),
    "phi 4": (
        "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>How many?"
        "<|im_end|><|im_start|>assistant<|im_sep|>",
        "It is 7.<|im_end|>",
    ),
    "llama 4": (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\nHow many?<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n",
        "It is 7.<|eot|>",
    ),
    "llama 2 with a system": (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHow many? [/INST]",
        " It is 7. </s>",
    ),
    "granite": (
        "<|start_of_role|>user<|end_of_role|>How many?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>",
        "It is 7.<|end_of_text|>",
    ),
    "gpt-oss": (
        "<|start|>system<|message|>Be kind.<|end|><|start|>user<|message|>How many?<|end|>"
        "<|start|>assistant",
        "<|channel|>analysis<|message|>3 + 4<|end|><|start|>assistant<|channel|>final<|message|>"
        "It is 7.<|return|>",
    ),
    "kimi": (
        "<|im_system|>system<|im_middle|>Be kind.<|im_end|><|im_user|>user<|im_middle|>How many?"
        "<|im_end|><|im_assistant|>assistant<|im_middle|>",
        "It is 7.<|im_end|>",
    ),
    "command": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How many?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "It is 7.<|END_OF_TURN_TOKEN|>",
    ),
    "gemma 4": (
        "<bos><|turn>system\nBe kind.<turn|>\n<|turn>user\nHow many?<turn|>\n<|turn>model\n",
        "<|channel>thought\n3 + 4<channel|>It is 7.<turn|>\n",
    ),
    "seed": (
        "<seed:bos>system\nBe kind.<seed:eos><seed:bos>user\nHow many?<seed:eos>"
        "<seed:bos>assistant\n",
        "It is 7.<seed:eos>",
    ),
    "minimax": (
        "]~!b[]~b]system\nBe kind.[e~[\n]~b]user\nHow many?[e~[\n]~b]ai\n",
        "It is 7.[e~[\n",
    ),
    "muse": (
        "<|start|>system<|message|>Be kind.<|eot|><|start|>user<|message|>How many?<|eot|>"
        "<|start|>assistant",
        " to=self<|message|>3 + 4<|eom|><|start|>assistant to=user<|message|>It is 7.<|eot|>",
    ),
    "command with a response token": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How many?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        "It is 7.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    "command with a thought": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>How many?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|START_THINKING|>3 + 4<|END_THINKING|><|START_RESPONSE|>It is 7.<|END_RESPONSE|>",
    ),
    "glm without a thought": (
        "[gMASK]<sop><|user|>\nHow many?/nothink<|assistant|>\n<think></think>",
        "\nIt is 7.<|user|>",
    ),
    "exaone": ("[|user|]How many?\n[|assistant|]", "It is 7.[|endofturn|]"),
    "plain": ("How many?", "\n\nIt is 7.<|endoftext|>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_markup_is_removed(name: str) -> None:
    prompt, response = TEMPLATES[name]
    assert question_of(prompt) == "How many?"
    assert answer_of(response) == "It is 7."
    assert answer_of(response_in(prompt + response, prompt)) == "It is 7."
    if name != "plain":
        question, answer = split_dialog(prompt + response, "\n\n")
        assert (question, split_thought(answer)[1].strip()) == ("How many?", "It is 7.")


THOUGHTS = [
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"),
    ("<think>", "</think>"),
]


@pytest.mark.parametrize(("start", "end"), THOUGHTS)
def test_a_thought_is_no_answer(start: str, end: str) -> None:
    assert is_blank(answer_of(f"{start}3 + 4"))  # cut off
    answer = answer_of(f"{start}3 + 4{end}It is 7.</s>")
    assert split_thought(answer)[1].strip() == "It is 7."
    if start != "<think>":  # an ordinary token
        assert has_thought_marks(f"{start}3 + 4")
        assert has_thought_marks(f"3 + 4{end}It is 7.</s>")


@pytest.mark.parametrize("start", [start for start, _ in THOUGHTS[3:]])
def test_a_prompt_may_start_the_thought(start: str) -> None:
    assert is_open_thought(f"<|im_start|>assistant\n{start}\n")
    assert not is_open_thought(f"How many?{start}3 + 4")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_a_truncated_prompt_is_found_by_its_end(name: str) -> None:
    prompt, response = TEMPLATES[name]
    for lost in (1, 5, len(prompt) // 2):
        assert response_in(prompt[lost:] + response, prompt) == response
    assert response_in("\ufffd" + prompt[3:] + response, prompt) == response


def test_a_query_that_does_not_continue_its_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="does not start with its prompt"):
        response_in("something else altogether", "How many pens are there?")


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("<s> [INST] How many? [/INST] It is 7.</s>", "<s>[INST] How many? [/INST]"),
        ("<s> [INST] How many? [/INST] It is 7.</s>", "[INST] How many? [/INST]"),
        ("<|begin_of_text|>How many? It is 7.", "How many?"),
        ("Combien d'\u00e9toiles ? It is 7.", "Combien d'e\u0301toiles ?"),
        ("<|user|>\nDon't, and how many?\n It is 7.", "<|user|>\nDo n't , and how many ?\n"),
    ],
)
def test_decoding_may_change_white_space_and_accents_and_add_a_bos(query: str, prompt: str) -> None:
    """Llama 2's tokenizer decodes a space after `<s>`, others remove spaces before signs, and
    Qwen's composes accents."""
    assert response_in(query, prompt).removesuffix("</s>") == " It is 7."


def test_the_users_last_turn_is_the_question() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    ]
    assert question_of(messages) == "How many?"
    assert answer_of([{"role": "assistant", "content": "7"}, *messages[:1]]) == "7"
    with pytest.raises(InputError, match="no user message"):
        question_of(messages[1:2])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_a_message_may_hold_a_rendered_prompt(name: str) -> None:
    """NeMo RL's user messages hold the chat template's text."""
    assert question_of([{"role": "user", "content": TEMPLATES[name][0]}]) == "How many?"
    quoted = "What does <|im_start|>user mean?"
    assert question_of([{"role": "user", "content": quoted}]) == quoted


def test_a_plain_dialog_is_split_at_the_first_empty_line() -> None:
    assert split_dialog("How many?\n\n3\n\n4", "\n\n") == ("How many?", "3\n\n4")
    with pytest.raises(InputError, match="no chat markup"):
        split_dialog("How many? 7", "\n\n")


def test_a_dialog_without_an_answer_is_refused_and_one_without_a_question_has_an_empty_one() -> (
    None
):
    def dialog(*roles: str) -> str:
        return "".join(f"<|im_start|>{role}\nOne.\n\nTwo.<|im_end|>\n" for role in roles)

    with pytest.raises(InputError, match="the dialog has no assistant turn; send question and"):
        split_dialog(dialog("system", "user"), "\n\n")
    for roles in (["system", "assistant"], ["assistant", "user"]):
        assert split_dialog(dialog(*roles), "\n\n") == ("", "One.\n\nTwo.")


def test_an_empty_line_may_end_with_a_carriage_return() -> None:
    for empty in ("\r\n\r\n", "\n\r\n", "\r\n\n", "\r\r", "\r\r\n"):
        assert split_dialog(f"How many?{empty}7", "\n\n") == ("How many?", "7")
    assert split_dialog("How\r\nmany?\r\n\r\n7", "\n\n") == ("How\r\nmany?", "7")
    assert split_dialog("How\rmany?\r\r7", "\n\n") == ("How\rmany?", "7")


def test_a_plain_dialog_has_no_special_tokens() -> None:
    question, answer = split_dialog("<s>How many?\n\n7</s>", "\n\n")
    assert (question_of(question), answer_of(answer)) == ("How many?", "7")


def test_unknown_markup_is_refused_if_the_question_would_be_lost() -> None:
    with pytest.raises(InputError, match=r"'<\|role:user\|>'"):
        question_of("<|role:user|>How many?<|role:model|>")
    assert question_of("How many?<|role:end|>") == "How many?"


def test_math_with_angle_brackets_and_bars_is_not_markup() -> None:
    assert answer_of("<|x|> is 2, [|x|] is 3</s>") == "<|x|> is 2, [|x|] is 3"


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt",
    [
        "<s> " * 1_000_000 + "many?",  # removing one at a time would take minutes
        f"<|im_start|>user\nHow{' ' * 1_000_000}many?",  # so would a search at each space
        "[INST] " + "<<SYS>>" * 500_000 + "many?",
    ],
)
def test_hostile_prompts_take_linear_time(prompt: str) -> None:
    start = time.perf_counter()
    assert question_of(prompt).endswith("many?")
    assert time.perf_counter() - start < SECONDS / 10


def test_an_empty_answer_stays_empty() -> None:
    assert answer_of("<|im_end|>\n<|im_start|>user\nNext?<|im_end|>") == ""
    assert answer_of("") == ""


def test_an_answer_of_gpt_oss_in_a_given_format_is_read() -> None:
    form = "<|channel|>final <|constrain|>json<|message|>{}<|return|>"
    assert answer_of(form) == "{}"
