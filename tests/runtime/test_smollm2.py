"""A real model end to end, in process: greedy tokens and logprobs against transformers in fp32."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.smollm2 import smollm2_dir
from thranite import LLM, SamplingParams
from thranite.outputs import RequestOutput

pytestmark = pytest.mark.model

# The whole measure is 64 prompts of 128 tokens (`make test-long`); every run of the tests does a part of it.
PROMPTS, OUTPUT = (64, 128) if os.environ.get("THRANITE_TEST_LONG") else (8, 48)
TIE = 1e-4  # a mismatch is excused only if the reference's two best logits are this close
MAX_EXCUSED = 2
SUBJECTS = ["the sea", "a trireme", "copper wire", "winter in Oslo", "prime numbers", "tea", "the moon", "old maps"]
FORMS = [
    "Write a short story about {}.",
    "List five facts about {}.",
    "Explain {} to a child.",
    "def describe():\n    # {}\n    return",
    "Translate into French: I like {}.",
    "Once upon a time, {}",
    "Q: What is {}?\nA:",
    "{0} " * 40,
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    model = LLM(str(smollm2_dir()), device="cpu", dtype="float32", max_model_len=2048, max_num_seqs=16)
    yield model
    model.close()


@pytest.fixture(scope="module")
def greedy(llm: LLM) -> list[RequestOutput]:
    prompts = [form.format(subject) for subject in SUBJECTS for form in FORMS][:PROMPTS]
    return llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True, logprobs=1))


def test_greedy_tokens_and_logprobs_equal_transformers(greedy: list[RequestOutput]) -> None:
    """Each output is checked token by token under the reference's own logits for the same text, which by induction is
    what its greedy generation yields."""
    reference = AutoModelForCausalLM.from_pretrained(smollm2_dir(), dtype=torch.float32).eval()
    excused, worst = [], 0.0
    for output in greedy:
        sample = output.outputs[0]
        assert len(sample.token_ids) == OUTPUT
        assert sample.logprobs is not None
        ids = torch.tensor([output.prompt_token_ids + sample.token_ids])
        with torch.inference_mode():
            logits = reference(ids).logits[0, len(output.prompt_token_ids) - 1 : -1]
        best = logits.topk(2)
        for position, token in enumerate(sample.token_ids):
            if token != int(best.indices[position, 0]):
                gap = float(best.values[position, 0] - logits[position, token])
                assert gap < TIE, f"prompt {output.prompt!r}, position {position}: {token} is {gap} below the best"
                excused.append((output.request_id, position, gap))
        chosen = torch.log_softmax(logits, -1)[range(OUTPUT), sample.token_ids]
        worst = max(worst, float((chosen - torch.tensor([s.logprob for s in sample.logprobs])).abs().max()))
    print(f"{PROMPTS * OUTPUT} tokens, excused: {excused}, worst logprob difference {worst:.1e}")
    assert len(excused) <= MAX_EXCUSED
    assert worst < 1e-4


def test_text_is_the_tokens_decoded(llm: LLM, greedy: list[RequestOutput]) -> None:
    tokenizer = llm.get_tokenizer()
    for output in greedy[:16]:
        whole = output.prompt_token_ids + output.outputs[0].token_ids
        assert tokenizer.decode(whole).endswith(output.outputs[0].text)
        assert output.outputs[0].finish_reason == "length"


def test_stop_strings_end_text_tokens_and_logprobs(llm: LLM, greedy: list[RequestOutput]) -> None:
    """Cut where the string is complete; the engine's further tokens are never seen."""
    full = greedy[1].outputs[0]
    stop = full.text[20:26]
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT, ignore_eos=True, logprobs=0, stop=stop)
    cut = llm.generate({"prompt_token_ids": greedy[1].prompt_token_ids}, params)[0].outputs[0]
    assert cut.text == full.text[: full.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == full.token_ids[: len(cut.token_ids)]
    assert stop in llm.get_tokenizer().decode(cut.token_ids)
    assert stop not in llm.get_tokenizer().decode(cut.token_ids[:-1])
    assert cut.logprobs is not None
    assert len(cut.logprobs) == len(cut.token_ids)


def test_a_second_turn_reuses_the_first_ones_blocks(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=40)
    talk = [{"role": "user", "content": "Name three rivers of Greece and say where each meets the sea. " * 3}]
    first = llm.chat(talk, params)[0]
    talk += [{"role": "assistant", "content": first.outputs[0].text}, {"role": "user", "content": "And of Italy?"}]
    second = llm.chat(talk, params)[0]
    block = llm.info.block_size
    assert second.cached_tokens >= len(first.prompt_token_ids) // block * block
    assert second.cached_tokens % block == 0


def test_samples_of_a_seed_repeat(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.0, top_p=0.95, max_tokens=24, seed=random.Random(1).randrange(2**40))
    one = llm.generate("The captain said", params)[0]
    many = llm.generate(["Unrelated", "The captain said", "Also unrelated"], params)[1]
    assert [o.token_ids for o in one.outputs] == [o.token_ids for o in many.outputs]
    assert len({tuple(o.token_ids) for o in one.outputs}) == 3
