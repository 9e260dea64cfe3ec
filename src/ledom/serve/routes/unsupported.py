"""Settings of other programs' protocols that this server's own models do not support.

A setting that could change the answer is refused, unless its value has no effect. All other unknown
keys are ignored, such as `user`, `metadata` and `store`.
"""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import ConfigDict

from ledom.core.reading import JsonObject
from ledom.serve.refusals import Refusal
from ledom.serve.routes.shared import Body

__all__ = ["ActivationBody", "ReadingBody", "WritingBody"]

_EMPTY: tuple[Any, ...] = (0, "", [], {})  # 0 equals 0.0 and false
_Neutral = dict[str, tuple[Any, ...]]
"""The values of each setting that do not change the answer; null never does."""


def _neutral_if_empty(names: str) -> _Neutral:
    return dict.fromkeys(names.split(), _EMPTY)


_WRITING: _Neutral = _neutral_if_empty("""
    allowed_token_ids bad_words frequency_penalty logit_bias logits_processors min_p
    presence_penalty use_beam_search vllm_xargs watermarking
    ignore_eos include_stop_str_in_output min_tokens repetition_detection stop stop_token_ids
    chat_template chat_template_kwargs continue_final_message documents prompt_embeds suffix
    functions guided_choice guided_grammar guided_json guided_regex structural_tag
    structured_outputs tools
    audio echo logprob_token_ids logprobs moderation return_prompt_text return_token_ids
    return_tokens_as_token_ids stream top_logprobs
""") | {
    "add_generation_prompt": (True,),
    "add_special_tokens": (True,),
    "best_of": (),  # only the value of n
    "function_call": (*_EMPTY, "none", "auto"),  # auto without functions calls none
    "max_completion_tokens": (),
    "modalities": (*_EMPTY, ["text"]),
    "n": (1,),
    "prompt_logprobs": (),  # 0 asks for the prompt's own tokens
    "reasoning_effort": (*_EMPTY, "none"),
    "repetition_penalty": (1,),
    "response_format": (*_EMPTY, {"type": "text"}),
    "skip_special_tokens": (True,),
    "tool_choice": (*_EMPTY, "none", "auto"),
    "truncate_prompt_tokens": (-1,),  # to the model's context; longer prompts are refused
    "verbosity": (*_EMPTY, "medium"),
    "web_search_options": (),  # {} asks for a search
}
_READING: _Neutral = _neutral_if_empty("""
    chat_template chat_template_kwargs instruction messages mm_processor_kwargs rank_fields
    return_embeddings return_text return_token_ids return_token_strs return_tokens_as_token_ids
""") | {
    "activation": (True,),
    "add_special_tokens": (True,),
    "dimensions": (1,),
    "embed_dtype": ("float32",),
    "encoding_format": ("float",),
    "endianness": ("native", "little"),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "max_tokens_per_query": (),
    "normalize": (False,),
    "raw_scores": (False,),
    "softmax": (True,),
    "top_k": (),  # Voyage's top_n
    "top_n": (0,),
    "truncate": (True, "END"),
    "truncate_prompt_tokens": (-1,),  # to the model's context; a longer question is refused
    "truncation": (True,),
    "truncation_direction": ("right", "Right"),
    "truncation_side": ("right",),
    "use_activation": (False,),  # routes that have it return the reward itself with False
}


class _SettingsBody(Body):
    """Base of the bodies whose unknown keys are checked. Its fields are the supported settings."""

    model_config = ConfigDict(extra="allow")

    def _neutral(self) -> _Neutral:
        raise NotImplementedError

    def _ignored(self) -> JsonObject:
        """The settings in the request that the route does not read."""
        return self.model_extra or {}

    def refuse_unsupported(self) -> None:
        """Raise `Refusal` for a setting without a field that would change the answer.

        >>> WritingBody(user="me", min_p=0).refuse_unsupported()
        >>> WritingBody(min_p=0.1).refuse_unsupported()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ledom.serve.refusals.Refusal: min_p is 0.1; this server's models do not support it; ...
        """
        neutral = self._neutral()
        for name, value in self._ignored().items():
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

    model: str | None = None

    def _neutral(self) -> _Neutral:
        return _READING


class ActivationBody(ReadingBody):
    """Base of the bodies of vLLM's routes that score texts."""

    use_activation: bool = True
    """False returns the reward itself; True a number from 0 to 1."""
