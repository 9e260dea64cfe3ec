"""CTranslate2 with a ledom model's weights, as a peer in scoring.py and sampling.py."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter

from ledom.lm.backends.local import HFLanguageModel

__all__ = ["CTranslate2"]


class CTranslate2:
    """Score and generate texts in model order, on as many threads as torch uses.

    The threads share each matmul or, with `batch_per_thread`, each thread computes its own batch.
    `folder` keeps the converted weights, in the checkpoint's precision. `precision` (float32 or
    int8) is that of the computation.
    """

    def __init__(
        self,
        lm: HFLanguageModel,
        folder: Path,
        precision: str = "float32",
        batch_per_thread: bool = False,
    ) -> None:
        if not folder.exists():
            TransformersConverter(lm.name).convert(str(folder))
            self._name_special_tokens(folder / "config.json")
        self._threads = torch.get_num_threads()
        self.vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text())
        self.eos_id = lm.tokenizer.eos_id
        self.generator = ctranslate2.Generator(
            str(folder),
            device="cpu",
            compute_type=precision,
            intra_threads=1 if batch_per_thread else self._threads,
            inter_threads=self._threads if batch_per_thread else 1,
        )
        self._restore_threads()

    def _restore_threads(self) -> None:
        """Restore torch's number of threads: CTranslate2 sets OpenMP's for the whole process."""
        torch.set_num_threads(self._threads)

    @staticmethod
    def _name_special_tokens(config: Path) -> None:
        """Replace special tokens that the model lacks (null) by one that it has."""
        settings = json.loads(config.read_text())
        names = [name for name in settings if name.endswith("_token")]
        known = next(settings[name] for name in names if settings[name])
        config.write_text(json.dumps(settings | {n: settings[n] or known for n in names}))

    def logprobs(self, texts: list[list[int]], batch_size: int) -> list[list[float]]:
        """log P of every token but the first of each text, in nats."""
        found = self.generator.score_batch(
            self._tokens(texts), max_batch_size=batch_size, max_input_length=0
        )
        self._restore_threads()
        return [result.log_probs for result in found]

    def generate(
        self,
        prompts: list[list[int]],
        batch_size: int,
        max_tokens: int,
        temperature: float,
        num_samples: int = 1,
    ) -> list[list[int]]:
        """Generate texts for each prompt, without EOS; greedy at temperature 0."""
        found = self.generator.generate_batch(
            self._tokens(prompts),
            max_batch_size=batch_size,
            max_length=max_tokens,
            min_length=0,
            beam_size=1,
            num_hypotheses=num_samples,
            sampling_topk=1 if temperature == 0 else 0,
            sampling_temperature=temperature or 1.0,
            include_prompt_in_result=False,
            end_token=[self.eos_id],
        )
        self._restore_threads()
        return [ids for result in found for ids in result.sequences_ids]

    def _tokens(self, texts: list[list[int]]) -> list[list[str]]:
        return [[self.vocabulary[i] for i in ids] for ids in texts]
