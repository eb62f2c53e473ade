"""Our advantages and our loss are TRL's: same number, same gradient, on the same tensors, through a real tiny Llama."""

import pytest
import torch

from problama_utils.grpo.advantages import group_advantages
from problama_utils.grpo.losses import clip_fractions, grpo_loss

trl = pytest.importorskip("trl")
PROMPT, TOKENS, ROWS, MAX_TOKENS = 4, 6, 8, 10
OURS = {
    "grpo": dict(aggregation="sequence"),
    "bnpo": dict(aggregation="token"),
    "dapo": dict(aggregation="token"),  # the whole batch in one pass
    "dr_grpo": dict(aggregation="constant", max_tokens=MAX_TOKENS),
}


def tiny_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(30)} | {"<pad>": 30, "<eos>": 31}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none",
        per_device_train_batch_size=ROWS, num_generations=4, max_completion_length=MAX_TOKENS, epsilon=0.2,
        beta=0.0, loss_type="grpo",
    )  # fmt: skip
    built = trl.GRPOTrainer(
        model=LlamaForCausalLM(config), reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=arguments, train_dataset=Dataset.from_dict({"prompt": ["w1 w2"] * 8}), processing_class=tiny_tokenizer(),
    )  # fmt: skip
    built.current_gradient_accumulation_steps = 1
    built.model.train()
    return built


def rollouts(seed, iterations):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, TOKENS + 1, (ROWS,), generator=generator)
    rewards = torch.randint(0, 3, (ROWS // 4, 4), generator=generator).float()
    inputs = {
        "prompt_ids": torch.randint(0, 30, (ROWS, PROMPT), generator=generator),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": torch.randint(0, 30, (ROWS, TOKENS), generator=generator),
        "completion_mask": (torch.arange(TOKENS)[None] < lengths[:, None]).long(),
        "advantages": group_advantages(rewards).flatten(),
        "num_items_in_batch": lengths.sum(),
        "ref_per_token_logps": None,
        "old_per_token_logps": None,
    }
    return inputs, 0.4 * torch.randn(2, ROWS, TOKENS, generator=generator) if iterations > 1 else None


def our_logprobs(model, inputs):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = model(input_ids=ids, attention_mask=attention).logits[:, PROMPT - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 0.04, 1.0])
@pytest.mark.parametrize("kl_correction", [False, True])
@pytest.mark.parametrize("loss_type", sorted(OURS))
def test_loss_and_gradient_equal_trl(trainer, loss_type, kl_correction, beta, iterations, seed):
    inputs, drift = rollouts(seed, iterations)
    model = trainer.model
    now = our_logprobs(model, inputs).detach()
    # One iteration: TRL reads a missing old log-probability as "the same policy". Several: the policy has moved.
    old = now if drift is None else now + drift[0]
    inputs["old_per_token_logps"] = None if drift is None else old
    inputs["ref_per_token_logps"] = reference = now + (torch.zeros_like(now) - 0.3 if drift is None else drift[1])
    trainer.loss_type, trainer.beta = loss_type, beta
    trainer.args.steps_per_generation, trainer.args.use_bias_correction_kl = 1, kl_correction

    theirs = trainer._compute_loss(model, inputs)
    their_gradient = gradients(model, theirs)
    ours = grpo_loss(
        our_logprobs(model, inputs), old, inputs["advantages"], inputs["completion_mask"],
        ref_logprobs=reference, beta=beta, kl_correction=kl_correction, **OURS[loss_type],
    )  # fmt: skip
    our_gradient = gradients(model, ours)
    assert their_gradient.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-6)


def test_clip_fractions_equal_trls_log(trainer):
    inputs, drift = rollouts(5, iterations=3)
    old = our_logprobs(trainer.model, inputs).detach() + drift[0]
    inputs["old_per_token_logps"] = old
    trainer.loss_type, trainer.beta = "grpo", 0.0
    trainer._metrics["train"].clear()
    trainer._compute_loss(trainer.model, inputs)
    low, high = clip_fractions(
        our_logprobs(trainer.model, inputs), old, inputs["advantages"], inputs["completion_mask"]
    )
    assert low + high > 0
    assert trainer._metrics["train"]["clip_ratio/low_mean"][-1] == pytest.approx(low)
    assert trainer._metrics["train"]["clip_ratio/high_mean"][-1] == pytest.approx(high)


def test_group_advantages_use_trls_deviation():
    from trl.trainer.utils import nanstd

    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    theirs = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards, dim=1).unsqueeze(1) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), theirs)
