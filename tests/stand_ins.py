"""Mocks of what cannot run here: a completions server and vLLM, each with a real tiny model.

They follow the documented protocols (arguments, refusals, response shapes) and compute with plain
transformers, one text at a time, so their numbers are those of the model behind them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from ledom.text.tokenizer import Tokenizer

Reply = tuple[int, bytes]


class PlainModel:
    """A model folder run by transformers. Ids are in model order."""

    def __init__(self, folder: str | Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.load(folder)
        self.lock = threading.Lock()
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.no_grad()
    def _log_softmax(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities, cached because many draws share a prefix."""
        with self.lock:
            known = self._known.get(tuple(ids))
            if known is None:
                known = self.model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)
                self._known[tuple(ids)] = known
            return known

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """log P of every token but the first."""
        every = self._log_softmax(ids)
        return [every[i - 1, ids[i]].item() for i in range(1, len(ids))]

    def alternatives(
        self, ids: Sequence[int], new: Sequence[int], count: int
    ) -> list[dict[int, float]]:
        """For each new token, the `count` most likely ones plus the token itself, as in vLLM."""
        every = self._log_softmax([*ids, *new])
        rows = []
        for place, token in enumerate(new, start=len(ids) - 1):
            values, order = every[place].topk(count)
            row = dict(zip(order.tolist(), values.tolist(), strict=True))
            rows.append(row | {token: every[place, token].item()})
        return rows

    def write(
        self,
        ids: Sequence[int],
        max_tokens: int,
        stop: Sequence[int],
        temperature: float,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[int]:
        """Generate new ids, including the one that stops."""
        generator = torch.Generator().manual_seed(seed)
        context = list(ids)
        while len(context) < len(ids) + max_tokens and not (
            len(context) > len(ids) and context[-1] in stop
        ):
            logits = self._log_softmax(context)[-1]
            if temperature == 0:
                context.append(int(logits.argmax()))
                continue
            values, order = (logits / temperature).softmax(-1).sort(descending=True)
            kept = values.cumsum(0) - values < top_p
            if top_k > 0:
                kept[top_k:] = False
            context.append(int(order[torch.multinomial(values * kept, 1, generator=generator)]))
        return context[len(ids) :]

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The response of a completions server (OpenAI's protocol, with ids as in vLLM)."""
        prompt, eos = body["prompt"], self.tokenizer.eos_id
        ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
        choices = []
        for index in range(body.get("n", 1)):
            new = self.write(
                ids,
                body["max_tokens"],
                [eos],
                body["temperature"],
                body.get("seed", 0) + index,
                body.get("top_k", 0),
                body.get("top_p", 1.0),
            )
            choice: dict[str, Any] = {
                "index": index,
                "text": self.tokenizer.decode(new),
                "finish_reason": "stop" if eos in new else "length",
                "logprobs": None,
            }
            if body.get("logprobs") and not body.get("echo"):
                rows = self.alternatives(ids, new, body["logprobs"])
                top = [{f"token_id:{token}": value for token, value in row.items()} for row in rows]
                choice["logprobs"] = {"top_logprobs": top}
            if body.get("echo"):
                values = [None, *self.logprobs([*ids, *new])]
                choice["logprobs"] = {"token_logprobs": values, "tokens": ["?"] * len(values)}
            if body.get("return_token_ids"):
                choice |= {"token_ids": new, "prompt_token_ids": ids}
            choices.append(choice)
        return {"id": "c", "object": "text_completion", "created": 1, "choices": choices}


class CompletionsServer:
    """Answers completions with `answer`; `faults` come first, one per request."""

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.faults: list[Reply | None] = []
        self.always: Callable[[dict[str, Any]], Reply | None] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                if server.always is not None:
                    reply = server.always(body)
                elif server.faults:
                    reply = server.faults.pop(0)
                else:
                    reply = server.reply(body)
                if reply is None:  # hang up without a response
                    self.connection.close()
                    return
                self.send_response(reply[0])
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply[1])))
                self.end_headers()
                self.wfile.write(reply[1])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        # It checks for a shutdown once per interval, by default half a second.
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def reply(self, body: dict[str, Any]) -> Reply:
        """A normal response."""
        return 200, json.dumps(self.answer(body) | {"model": body["model"]}).encode()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@dataclass
class SamplingParams:
    """The fields of vLLM's class that are supported here."""

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < -1:
            raise ValueError("temperature, top_p or top_k out of range")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool = field(default=True)


class LLM:
    """vLLM's offline interface without its tokenizer: ids in, ids out."""

    made: list[dict[str, Any]] = []
    """The arguments of each instance created."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        enable_prefix_caching: bool | None = None,
    ) -> None:
        LLM.made.append({k: v for k, v in locals().items() if k != "self"})
        self.plain = PlainModel(model)
        longest = self.plain.model.config.max_position_embeddings
        if max_model_len is not None and max_model_len > longest:
            raise ValueError(f"User-specified max_model_len ({max_model_len}) is greater than ...")
        self.max_model_len = max_model_len or longest
        self.skip_tokenizer_init = skip_tokenizer_init

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(prompts)
        assert sampling_params is not None
        return [
            self._run(prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _run(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        if not ids:
            raise ValueError("The decoder prompt cannot be empty")
        if len(ids) >= self.max_model_len:
            raise ValueError("the prompt leaves no room for one output token")
        if self.skip_tokenizer_init and params.detokenize:
            raise ValueError("without a tokenizer nothing can be detokenized")
        room = self.max_model_len - len(ids)
        rows = None
        if params.prompt_logprobs is not None:
            values = zip(ids[1:], self.plain.logprobs(ids), strict=True)
            rows = [None, *({token: Logprob(value)} for token, value in values)]
        outputs = []
        for index in range(params.n):
            new = self.plain.write(
                ids,
                min(params.max_tokens or room, room),
                params.stop_token_ids or [],
                params.temperature,
                (params.seed or 0) + index,
                params.top_k,
                params.top_p,
            )
            stopped = bool(new) and new[-1] in (params.stop_token_ids or [])
            top = None
            if params.logprobs is not None:
                top = [
                    {token: Logprob(value) for token, value in row.items()}
                    for row in self.plain.alternatives(ids, new, params.logprobs)
                ]
            reason = "stop" if stopped else "length"
            outputs.append(CompletionOutput(index, "", new, reason, top))
        return RequestOutput(ids, rows, outputs)


def vllm_module() -> ModuleType:
    """A module for `sys.modules` under the name vllm."""
    module = ModuleType("vllm")
    vars(module).update(LLM=LLM, SamplingParams=SamplingParams)
    return module


def sentencepiece_like(form: str = "prepend", byte_fallback: bool = True) -> Tokenizer:
    """A small Llama-like tokenizer: a space before a text, unknown characters as bytes.

    `prepend` and `metaspace` are the two ways to write the space in tokenizer.json. Its tokens
    are `<s>` (BOS, which nothing adds) and `</s>` (EOS).
    """
    backend = RustTokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    texts = ["Once upon a time it is so\n and they lived happily ever after", "two blanks\n\nb c"]
    backend.train_from_iterator([f" {text}" for text in texts] * 20, trainer)
    settings = json.loads(backend.to_str())
    vocabulary = settings["model"]["vocab"]
    if byte_fallback:
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    settings["model"] |= {"byte_fallback": byte_fallback, "fuse_unk": True}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if form == "prepend":
        parts = [{"type": "Prepend", "prepend": "▁"}, replace]
        settings["normalizer"] = {"type": "Sequence", "normalizers": parts}
        settings["pre_tokenizer"] = None
    else:
        settings["pre_tokenizer"] |= {"prepend_scheme": "first", "split": False}
    back = replace | {"pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    settings["decoder"] = {"type": "Sequence", "decoders": decoders}
    return Tokenizer(RustTokenizer.from_str(json.dumps(settings)), "</s>")
