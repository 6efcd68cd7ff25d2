"""The keys of the stage `rl`: this project's, and TRL's GRPOConfig without the keys whose work is done here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from trl import GRPOConfig

from data_schemas.stage_keys import Keys
from engine.runtime.arguments import KEEP_BY_LOSS, TrainingStageArguments
from engine.runtime.keys import key_field


@dataclass(kw_only=True)
class RLArguments(TrainingStageArguments):
    """Keys of this project, and keys of TRL whose limits or choices TRL's dataclass does not declare."""

    keep: str = key_field(
        KEEP_BY_LOSS,
        "the model that is saved: the one with the highest eval_reward within kl_budget, the start included",
        choices=(KEEP_BY_LOSS,),
        omitted_at_default=True,
    )
    num_generations: int = key_field(8, "K, answers to each prompt, which are compared", minimum=2, maximum=1000)
    max_completion_length: int = key_field(256, "longest answer, in tokens", minimum=1, maximum=10**7)
    algorithm: Literal["grpo", "rloo"] = key_field("grpo", "how rewards become advantages, and which loss of TRL's")
    reward_model: str | None = key_field(None, "a reward model that scores the answers", role="model")
    reward_functions: list[str] | None = key_field(
        None, "module:function(prompt, answer, ended) -> reward, for rewards that can be computed", role="function"
    )
    reward_weights: list[float] | None = key_field(
        None, "weights of the reward model and of each function, in this order; null: 1 each"
    )
    function_timeout: float = key_field(
        60.0, "seconds that one call of a reward function may take", role="runtime", above=0, maximum=10**6
    )
    reference_model: str | None = key_field(None, "the reference policy; null: the model it starts from", role="model")
    beta: float = key_field(
        0.05, "weight of the KL divergence: per token in GRPO's loss, per answer in RLOO's reward", minimum=0
    )
    reward_shaping: Literal["none", "sigmoid_of_reference"] = key_field(
        "none", "guard: sigmoid_of_reference is sigmoid(reward - reward of the reference's answers)"
    )
    num_reference_answers: int = key_field(
        1, "answers of the reference to each prompt, for reward_shaping", minimum=1, maximum=1000
    )
    kl_budget: float | None = key_field(
        None, "guard: training stops where the KL to the reference exceeds so many nats an answer; null: never", above=0
    )
    unfinished_penalty: float = key_field(
        0.0, "guard: subtracted from the reward of an answer that the length limit cut off", minimum=0
    )
    steps_per_window: int = key_field(
        1, "optimizer steps that the answers of one window are divided into", minimum=1, maximum=10**6
    )
    generation_batch_size: int = key_field(
        32, "answers written at a time; another size changes rounding at most", minimum=1, maximum=10**6
    )
    engine: Literal["transformers", "vllm"] = key_field(
        "transformers",
        "what generates: this process, or a vLLM that gets the weights whenever they have changed",
        omitted_at_default=True,
    )
    vllm: Keys | None = key_field(
        None, "python: the interpreter of vLLM's own environment; gpu_memory_utilization, max_model_len", role="runtime"
    )
    num_eval_answers: int = key_field(1, "answers to each held-out prompt in an evaluation", minimum=1, maximum=1000)
    max_prompt_tokens: int | None = key_field(None, "longer prompts are left out; null: no limit", minimum=1)
    round: int = key_field(1, "each round draws its prompts in another order", minimum=0, maximum=10**6)
    temperature: float = key_field(1.0, "softmax temperature of the answers, and of the loss", minimum=0)
    top_p: float = key_field(1.0, "nucleus: the smallest set of tokens with this much probability", above=0, maximum=1)
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = key_field(
        "dapo", "what GRPO's loss is divided by: see docs/rl.md"
    )
    scale_rewards: Literal["group", "batch", "none"] = key_field(
        "group", "standard deviation that GRPO's advantages are divided by"
    )
    importance_sampling_level: Literal["token", "sequence"] = key_field(
        "token", "what GRPO's probability ratio is of; sequence is GSPO"
    )
    normalize_advantages: bool = key_field(False, "RLOO's advantages get mean 0 and standard deviation 1")
    spike_sigma: float | None = key_field(
        None, "a loss so many standard deviations above the mean of the last 128 is a spike; null: none is", above=0
    )


@dataclass
class PolicyGradientConfig(GRPOConfig):
    """TRL's GRPOConfig with the fields of RLOOConfig that its trainer reads.

    `LEFT_OUT` names TRL's keys that are no keys here, since this project samples, scores and logs by itself.
    """

    LEFT_OUT: ClassVar[frozenset[str]] = frozenset(
        """
        cache_implementation cast_lm_head_to_fp32 chat_template_kwargs disable_dropout
        ds3_gather_for_generation entropy_coef entropy_coef_delta entropy_coef_max
        entropy_coef_min entropy_target generation_batch_size generation_kwargs log_completions
        log_completions_hub_repo log_multimodal log_unique_prompts max_tool_calling_iterations min_p model_init_kwargs
        multi_objective_aggregation num_completions_to_print num_generations_eval off_policy_mask_threshold
        pad_to_multiple_of ref_model_mixup_alpha ref_model_sync_steps repetition_penalty reward_clip_range
        router_aux_loss_coef sapo_temperature_neg sapo_temperature_pos shuffle_dataset steps_per_generation
        sync_ref_model top_entropy_quantile top_k transformers_continuous_batching_config use_adaptive_entropy
        use_transformers_continuous_batching use_transformers_paged use_vllm vespo_k_neg vespo_k_pos vespo_lambda_neg
        vespo_lambda_pos vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port
        vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
        vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_max_model_length vllm_mode
        vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout
        vllm_structured_outputs_regex vllm_tensor_parallel_size
        """.split()
    )

    num_generations_eval: int | None = 1  # TRL's check of the evaluation batch, which has no use here, then passes
    disable_dropout: bool = True  # the probability ratio of a window's first step is 1
    normalize_advantages: bool = False
    reward_clip_range: tuple[float, float] | None = None
