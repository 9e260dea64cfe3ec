"""Question and answer out of chat markup, special tokens and cut prompts."""

from __future__ import annotations

import pytest

from ledom.core.errors import InputError
from ledom.serve.chat_text import answer_of, question_of, response_in, split_dialog

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
    "plain": ("How many?", "\n\nIt is 7.<|endoftext|>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_markup_is_taken_off(name: str) -> None:
    prompt, response = TEMPLATES[name]
    assert question_of(prompt) == "How many?"
    assert answer_of(response) == "It is 7."
    assert answer_of(response_in(prompt + response, prompt)) == "It is 7."
    if name != "plain":
        assert split_dialog(prompt + response, "\n\n") == ("How many?", "It is 7.")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_a_prompt_that_lost_its_start_is_found_by_its_end(name: str) -> None:
    prompt, response = TEMPLATES[name]
    for lost in (1, 5, len(prompt) // 2):
        assert response_in(prompt[lost:] + response, prompt) == response
    assert response_in("\ufffd" + prompt[3:] + response, prompt) == response


def test_a_query_that_does_not_continue_its_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="does not start with its prompt"):
        response_in("something else altogether", "How many pens are there?")


def test_the_last_turn_of_the_user_is_the_question() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    ]
    assert question_of(messages) == "How many?"
    assert answer_of([{"role": "assistant", "content": "7"}]) == "7"
    with pytest.raises(InputError, match="no user message"):
        question_of(messages[1:2])


def test_a_plain_dialog_is_split_at_the_first_empty_line() -> None:
    assert split_dialog("How many?\n\n3\n\n4", "\n\n") == ("How many?", "3\n\n4")
    with pytest.raises(InputError, match="no chat markup"):
        split_dialog("How many? 7", "\n\n")


def test_an_answer_of_nothing_is_nothing() -> None:
    assert answer_of("<|im_end|>\n<|im_start|>user\nNext?<|im_end|>") == ""
    assert answer_of("") == ""
