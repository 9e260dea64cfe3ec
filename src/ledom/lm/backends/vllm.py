"""Runs a model folder with vLLM, on GPUs, in this process.

Prompts and outputs are token ids in model order, so both directions can be scored and sampled.
Scoring requests the log-probabilities of the prompt (`prompt_logprobs`); prefix caching is off,
because cached tokens have none. vLLM does not load its own tokenizer. This uses vLLM's documented
offline interface; it was tested with vLLM 0.32 on a CPU and with a mock, not on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ledom.core import processes
from ledom.core.direction import Direction
from ledom.core.errors import CheckpointError, InputError, in_one_line, needs_extra
from ledom.core.files import digest
from ledom.lm.confidence import of_alternatives
from ledom.lm.generation import Prompts, PromptTexts
from ledom.lm.language_model import Generation, LanguageModel, Sampling, TokenSpan
from ledom.model.checkpoint import read_checkpoint_info
from ledom.model.folder import count_parameters

__all__ = ["VLLMLanguageModel"]

_RESOURCES = {  # options that affect speed and placement, not results
    "cpu_offload_gb",
    "disable_log_stats",
    "enforce_eager",
    "gpu_memory_utilization",
    "max_num_batched_tokens",
    "max_num_seqs",
    "pipeline_parallel_size",
    "swap_space",
    "tensor_parallel_size",
}
_TOGETHER = 4096  # requests per call to vLLM; results are yielded between calls


class VLLMLanguageModel(LanguageModel):
    """A causal language model from a Hugging Face folder; see `ledom.load`.

    Further options are passed to `vllm.LLM` (`tensor_parallel_size`, `gpu_memory_utilization`,
    `max_model_len` ...). Raises `CheckpointError` for a model that vLLM cannot load.
    """

    reports_confidence = True

    def __init__(
        self,
        path: str | Path,
        direction: Direction | str | None = None,
        dtype: str = "auto",
        eos_token: str | None = None,
        bos_token: str | None = None,
        **engine: Any,
    ) -> None:
        with needs_extra("vllm", "vllm"):
            import vllm
        if processes.size() > 1:
            raise InputError(
                f"{path}: vLLM itself distributes a model over GPUs; start ledom without torchrun "
                f"and give vllm:{path},tensor_parallel_size=N"
            )
        if dtype == "int8":
            raise InputError(f"{path}: int8 is for ledom's own backend on a CPU; give dtype auto")
        info = read_checkpoint_info(path, direction, eos_token, bos_token=bos_token)
        longest = engine.setdefault("max_model_len", info.context)
        if not isinstance(longest, int):
            raise InputError(f"{path}: max_model_len is {longest!r}; give a number of tokens")
        decisive = {key: engine[key] for key in sorted(engine) if key not in _RESOURCES}
        super().__init__(
            name=str(path),
            direction=info.direction,
            tokenizer=info.tokenizer,
            pair_format=info.pair_format,
            bos_ids=info.bos_ids,
            # A scored text is entirely prompt, and vLLM needs room to write one more token.
            context=longest - 2,
            fingerprint=f"{info.fingerprint}-vllm-{dtype}-{digest(repr(decisive)):x}",
            num_parameters=count_parameters(info.folder),
            stop_ids=info.stop_ids,
        )
        self._llm = _start(vllm, str(path), dtype=dtype, **engine)
        self._params = vllm.SamplingParams

    def logprobs(self, targets: Sequence[TokenSpan]) -> list[NDArray[np.float32]]:
        spans = self.check_targets(targets)
        asked = [place for place, (_, start, end) in enumerate(spans) if end > start]
        params = self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        prompts = [ids[:end] for ids, start, end in spans if end > start]
        found = dict(zip(asked, self._run(prompts, params), strict=True))
        results = []
        for place, (ids, start, end) in enumerate(spans):
            rows = found[place].prompt_logprobs if place in found else []
            values = [rows[i][ids[i]].logprob for i in range(start, end)]
            results.append(self.direction.to_reading_order(np.array(values, np.float32)))
        return results

    def generate(
        self, prompts: Prompts, sampling: Sampling, num_samples: int = 1, first_sample: int = 0
    ) -> Iterator[PromptTexts]:
        texts, contexts = self.text_prompts(prompts, sampling)
        numbers = self.sample_numbers(num_samples, first_sample)
        together = max(1, _TOGETHER // len(numbers))
        for first in range(0, len(texts), together):
            places = range(first, min(first + together, len(texts)))
            asked = [(place, number) for place in places for number in numbers]
            params = [self._draw(texts[place], number, sampling) for place, number in asked]
            outputs = self._run([contexts[place] for place, _ in asked], params)
            made = [
                self._generation(texts[place], output.outputs[0], sampling)
                for (place, _), output in zip(asked, outputs, strict=True)
            ]
            for i, place in enumerate(places):
                yield place, made[i * len(numbers) : (i + 1) * len(numbers)]

    def _draw(self, prompt: str, sample: int, sampling: Sampling) -> Any:
        return self._params(
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,  # all
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=digest(f"{sampling.seed} {sample} {prompt}") >> 1,
            logprobs=None if sampling.confidence is None else sampling.confidence.top_k,
            stop_token_ids=sorted(self.stop_ids),  # without a tokenizer, vLLM has no default
            detokenize=False,
        )

    def _run(self, prompts: Sequence[list[int]], params: Any) -> Any:
        """vLLM's outputs, in the order of the prompts."""
        if not prompts:
            return []
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        try:
            return self._llm.generate(requests, params, use_tqdm=False)
        except ValueError as error:  # for example, more alternatives than `max_logprobs`
            raise InputError(f"{self.name}: vLLM refuses this: {in_one_line(error)}") from error

    def _generation(self, prompt: str, output: Any, sampling: Sampling) -> Generation:
        written = [int(i) for i in output.token_ids if i not in self.stop_ids]
        ids = self.direction.to_reading_order(written)
        reason: Literal["stop", "length"] = "stop" if output.finish_reason == "stop" else "length"
        confidence = None
        if sampling.confidence is not None:
            rows = [{i: row.logprob for i, row in found.items()} for found in output.logprobs]
            confidence = of_alternatives(rows, sampling.confidence)
        return Generation(self.written_text(prompt, ids), ids, reason, confidence=confidence)


def _start(vllm: Any, path: str, **options: Any) -> Any:
    """Start vLLM's engine for a model folder, without its tokenizer and prefix cache."""
    try:
        return vllm.LLM(
            model=path, skip_tokenizer_init=True, enable_prefix_caching=False, **options
        )
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        reason = in_one_line(error, 300)
        raise CheckpointError(f"{path}: vLLM cannot load this: {reason}") from error
