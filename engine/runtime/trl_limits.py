"""Limits and choices of TRL's and transformers' keys, which their dataclasses do not declare.

A value beyond them ends in an error long after the start, or trains nothing without an error. `make keys` writes them
into stage_keys.json. A limit refuses only what no method can use; where a library has the list of valid names, it is
taken from there.
"""

import torch._inductor
from peft import TaskType
from transformers.debug_utils import DebugOption
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_schemas.limits import Limits
from data_schemas.stage_keys import TRACKERS

OURS = ("row_segments_", "shared_prompts")  # attention functions that packing and sampling register when imported
_AT_LEAST_0, _AT_LEAST_1, _ABOVE_0 = Limits(minimum=0), Limits(minimum=1), Limits(above=0)
_SHARE = Limits(minimum=0, maximum=1)
_STEPS = Limits(above=0, whole_from_1=True)
_PROCESSES = Limits(minimum=0, maximum=1024)

LIMITS = {
    # Duration.
    "num_train_epochs": Limits(above=0, maximum=1_000_000),
    "max_steps": Limits(minimum=1, maximum=10**9, also=(-1,)),
    # When something happens: steps, or below 1 a share of all steps.
    "logging_steps": _STEPS,
    "eval_steps": _STEPS,
    "save_steps": _STEPS,
    "warmup_steps": Limits(minimum=0, whole_from_1=True),
    "eval_delay": _AT_LEAST_0,
    "save_total_limit": _AT_LEAST_0,
    # The optimizer. A momentum of 1 divides by zero.
    "learning_rate": _ABOVE_0,
    "weight_decay": _AT_LEAST_0,
    "adam_beta1": Limits(minimum=0, below=1),
    "adam_beta2": Limits(minimum=0, below=1),
    "adam_epsilon": _AT_LEAST_0,
    "max_grad_norm": _AT_LEAST_0,
    "neftune_noise_alpha": _AT_LEAST_0,
    # The loss.
    "label_smoothing_factor": Limits(minimum=0, below=1),
    "label_smoothing": Limits(minimum=0, below=0.5),
    "beta": _ABOVE_0,
    "ld_alpha": _SHARE,
    "discopop_tau": _ABOVE_0,
    "loss_weights": _AT_LEAST_0,
    "router_aux_loss_coef": _AT_LEAST_0,
    "center_rewards_coefficient": _AT_LEAST_0,
    "ref_model_mixup_alpha": _SHARE,
    "ref_model_sync_steps": _AT_LEAST_1,
    # Policy gradients.
    "num_iterations": Limits(minimum=1, maximum=1000),
    "epsilon": _ABOVE_0,
    "epsilon_high": _ABOVE_0,
    "delta": _ABOVE_0,
    # Rows and batches.
    "max_length": Limits(minimum=1, maximum=10**8),
    "per_device_train_batch_size": Limits(minimum=1, maximum=10**6),
    "per_device_eval_batch_size": Limits(minimum=1, maximum=10**6),
    "precompute_ref_batch_size": Limits(minimum=1, maximum=10**6),
    "eval_accumulation_steps": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "pad_to_multiple_of": Limits(minimum=1, maximum=10**6),
    # LoRA.
    "lora_r": Limits(minimum=1, maximum=10**6),
    "lora_alpha": _AT_LEAST_1,
    "lora_dropout": Limits(minimum=0, below=1),
    # Seeds of numpy have 32 bits.
    "seed": Limits(minimum=0, maximum=2**32 - 1),
    "data_seed": Limits(minimum=0, maximum=2**32 - 1),
    # Processes, memory, time.
    "dataloader_num_workers": _PROCESSES,
    "dataloader_prefetch_factor": Limits(minimum=1, maximum=10**6),
    "dataset_num_proc": Limits(minimum=1, maximum=1024),
    "torch_empty_cache_steps": _AT_LEAST_1,
    "ddp_bucket_cap_mb": Limits(minimum=1, maximum=10**6),
    "ddp_timeout": Limits(minimum=1, maximum=10**8),
    "local_rank": Limits(minimum=-1, maximum=10**6),
}

CHOICES = {
    "attn_implementation": [
        "eager",
        *sorted(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in name and not name.startswith(OURS)),
    ],
    "bnb_4bit_quant_storage": ["uint8", "int8", "float16", "float32", "float64", "bfloat16"],
    "debug": [option.value for option in DebugOption],
    # TRL's trainer compares the names one by one; test_trl_limits holds that it knows each of these.
    "f_divergence_type": ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"],
    "include_num_input_tokens_seen": ["all", "non_padding", "no"],
    "lora_task_type": sorted(kind.value for kind in TaskType),
    "loss_type": """sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down
    discopop sft sigmoid_norm""".split(),
    "pad_to_multiple_of": ["auto"],
    "report_to": list(TRACKERS),
    "torch_compile_mode": sorted(torch._inductor.list_mode_options()),
}

MAY_BE_EMPTY = ("report_to",)  # an empty list has a meaning: no tracker
