"""Samples answers from a model behind an OpenAI-compatible endpoint: a policy to compare with, a teacher, a judge.

The server applies its own chat template. Answers have text only, no tokens of ours; `ended` is false for an answer that
`max_tokens` cut off. The seed of an answer is sent along, and most servers are deterministic in it only nearly, so what
is kept on the disk, not the seed, makes a step repeatable. The first process of a stage asks for all of its processes.
"""

import hashlib
from collections.abc import Sequence

from data_schemas.rows import for_template
from engine.endpoints.client import ChatRequest, EndpointClient
from engine.endpoints.transport import Reply
from engine.runtime import timing
from engine.runtime.journal import in_batches
from engine.runtime.stage import Stage
from engine.sampling.answers import Answer, GeneratedAnswer, Policy, SampleRequest, SamplingSettings


class EndpointEngine:
    """Samples from a policy that has an endpoint."""

    def __init__(self, stage: Stage, name: str, policy: Policy, settings: SamplingSettings) -> None:
        """`name` is that of the journal. Raises ConfigError where the environment lacks the key."""
        assert policy.endpoint is not None, "chosen by the sampler"
        self.stage, self.name, self.policy, self.settings = stage, name, policy, settings
        self.client = EndpointClient(policy.path, policy.endpoint, stage.folder)
        self.endpoint = policy.endpoint

    @timing.part("generate")
    def sample(self, requests: Sequence[SampleRequest]) -> list[Answer]:
        """One answer for each request, in order; an empty one where the server does not accept the request, or the
        model refuses it without words. Raises UserError and StageError as `EndpointClient.ask` does."""
        asked = [self.chat_request(request) for request in requests]
        content = ("endpoint", *(request.key(self.endpoint) for request in asked))
        try:
            generated = in_batches(
                self.stage,
                self.name,
                asked,
                self._generate,
                size=max(1, len(asked)),  # one batch: the first process asks, and divides the work itself
                content=content,
                doing=f"answers by {self.endpoint.model}",
                unit="answers",
            )
        finally:
            self.client.transport.close()
        return [
            Answer(prompt=request.prompt, k=request.k, policy=self.policy.name, **answer)
            for request, answer in zip(requests, generated, strict=True)
        ]

    def _generate(self, requests: Sequence[ChatRequest]) -> list[GeneratedAnswer]:
        return [_generated(reply) for reply in self.client.ask(requests)]

    def chat_request(self, request: SampleRequest) -> ChatRequest:
        """What the endpoint is asked."""
        return ChatRequest(
            messages=for_template(request.prompt.prompt),
            temperature=self.settings.temperature_of(request),
            top_p=self.settings.top_p,
            max_tokens=self.settings.max_new_tokens,
            seed=_seed(self.settings.seed, request),
            tools=request.prompt.tools,
        )


def _generated(reply: Reply) -> GeneratedAnswer:
    if reply.finish == "rejected":  # its text is the server's message
        return {"text": "", "ids": [], "ended": False, "problem": "rejected"}
    problem = "refused" if reply.is_refusal else ""
    return {"text": reply.text, "ids": [], "ended": reply.finish != "length", "problem": problem}


def _seed(seed: str, request: SampleRequest) -> int:
    """The seed of one answer, from 0 to 2**31 - 1: all servers take that range."""
    key = hashlib.sha256(f"{seed}/{request.prompt.prompt_id}/{request.k}".encode()).digest()
    return int.from_bytes(key[:4], "big") >> 1
