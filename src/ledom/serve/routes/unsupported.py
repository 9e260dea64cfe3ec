"""Settings of other programs' protocols that this server's own models do not support.

A setting that would change the answer is refused, unless its value leaves the answer as it is. All
other unknown keys are ignored, such as `user`, `metadata` and `store`.
"""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import ConfigDict

from ledom.core.reading import JsonObject
from ledom.serve.refusals import Refusal
from ledom.serve.routes.shared import Body

__all__ = ["ReadingBody", "WritingBody"]

_EMPTY: tuple[Any, ...] = (0, "", [], {})  # 0 equals 0.0 and false
_Neutral = dict[str, tuple[Any, ...]]
"""The values of each setting that leave the answer as it is; null always does."""

_WRITING: _Neutral = {
    # How tokens are drawn
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "best_of": (),  # only the value of n
    "frequency_penalty": _EMPTY,
    "logit_bias": _EMPTY,
    "logits_processors": _EMPTY,
    "min_p": _EMPTY,
    "presence_penalty": _EMPTY,
    "repetition_penalty": (1,),
    "use_beam_search": _EMPTY,
    "vllm_xargs": _EMPTY,
    "watermarking": _EMPTY,
    # Where a text ends
    "ignore_eos": _EMPTY,
    "include_stop_str_in_output": _EMPTY,
    "max_completion_tokens": (),
    "min_tokens": _EMPTY,
    "repetition_detection": _EMPTY,
    "stop": _EMPTY,
    "stop_token_ids": _EMPTY,
    # What the model reads
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "chat_template": _EMPTY,
    "chat_template_kwargs": _EMPTY,
    "continue_final_message": _EMPTY,
    "documents": _EMPTY,
    "prompt_embeds": _EMPTY,
    "suffix": _EMPTY,
    "truncate_prompt_tokens": (-1,),  # to the model's context; longer prompts are refused
    "web_search_options": (),  # {} asks for a search
    # The form of a text
    "function_call": (*_EMPTY, "none", "auto"),  # auto without functions calls none
    "functions": _EMPTY,
    "guided_choice": _EMPTY,
    "guided_grammar": _EMPTY,
    "guided_json": _EMPTY,
    "guided_regex": _EMPTY,
    "reasoning_effort": (*_EMPTY, "none"),
    "response_format": (*_EMPTY, {"type": "text"}),
    "skip_special_tokens": (True,),
    "structural_tag": _EMPTY,
    "structured_outputs": _EMPTY,
    "tool_choice": (*_EMPTY, "none", "auto"),
    "tools": _EMPTY,
    "verbosity": (*_EMPTY, "medium"),
    # What is sent beside the text
    "audio": _EMPTY,
    "echo": _EMPTY,
    "logprob_token_ids": _EMPTY,
    "logprobs": _EMPTY,
    "modalities": (*_EMPTY, ["text"]),
    "moderation": _EMPTY,
    "n": (1,),
    "prompt_logprobs": (),  # 0 asks for the prompt's own tokens
    "return_prompt_text": _EMPTY,
    "return_token_ids": _EMPTY,
    "return_tokens_as_token_ids": _EMPTY,
    "stream": _EMPTY,
    "top_logprobs": _EMPTY,
}
_READING: _Neutral = {
    # What the model reads
    "add_special_tokens": (True,),
    "chat_template": _EMPTY,
    "chat_template_kwargs": _EMPTY,
    "instruction": _EMPTY,
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "max_tokens_per_query": (),
    "messages": _EMPTY,
    "mm_processor_kwargs": _EMPTY,
    "rank_fields": _EMPTY,
    "truncate": (True, "END"),
    "truncate_prompt_tokens": (-1,),  # to the model's context; a longer question is refused
    "truncation": (True,),
    "truncation_direction": ("right", "Right"),
    "truncation_side": ("right",),
    # The numbers
    "activation": (True,),
    "normalize": (False,),
    "raw_scores": (False,),
    "softmax": (True,),
    "use_activation": (False,),  # routes that have it return the reward itself with False
    # The form of the answer
    "dimensions": (1,),
    "embed_dtype": ("float32",),
    "encoding_format": ("float",),
    "endianness": ("native", "little"),
    "return_embeddings": _EMPTY,
    "return_text": _EMPTY,
    "return_token_ids": _EMPTY,
    "return_token_strs": _EMPTY,
    "return_tokens_as_token_ids": _EMPTY,
    "top_n": (0,),
}


class _SettingsBody(Body):
    """Base of the bodies whose unknown keys are checked; a route has a field for each setting that
    it supports."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)

    def _neutral(self) -> _Neutral:
        raise NotImplementedError

    def _unsupported(self) -> JsonObject:
        """The settings that were given, and that the route would ignore."""
        return self.model_extra or {}

    def refuse_unsupported(self) -> None:
        """Raise `Refusal` for a setting without a field that would change the answer.

        >>> WritingBody(user="me", min_p=0).refuse_unsupported()
        >>> WritingBody(min_p=0.1).refuse_unsupported()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ledom.serve.refusals.Refusal: min_p is 0.1; this server's models do not support it; ...
        """
        neutral = self._neutral()
        for name, value in self._unsupported().items():
            if name in neutral and value is not None and value not in neutral[name]:
                raise Refusal(
                    400,
                    f"{name} is {reprlib.repr(value):.60}; this server's models do not support it; "
                    "leave it out",
                )


class WritingBody(_SettingsBody):
    """Base of the bodies of routes that write text. Unknown keys are kept, for an upstream."""

    def _neutral(self) -> _Neutral:
        return {**_WRITING, "best_of": (getattr(self, "n", None) or 1,)}


class ReadingBody(_SettingsBody):
    """Base of the bodies of routes that score texts, or turn them into tokens."""

    def _neutral(self) -> _Neutral:
        return _READING
