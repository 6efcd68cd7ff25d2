"""From rewards to advantages: the guards on a reward, and the baselines of GRPO and RLOO.

The numbers are those of TRL's trainers, which tests/engine/reinforcement compare.
"""

import torch

# Shapes: P = prompts of a window, K = answers to each.

EPSILON = 1e-4  # TRL adds it to a standard deviation before it divides


def shaped(rewards_PK: torch.Tensor, reference_P1: torch.Tensor) -> torch.Tensor:
    """sigmoid(reward - reward of the reference's answer), in (0, 1), [P, K] (PAR, arXiv 2502.18770).

    It is bounded, and its slope is largest where an answer is about as good as the reference's: a reward that grows
    without limit gains nothing.
    """
    return torch.sigmoid(rewards_PK - reference_P1)


def grpo_advantages(rewards_PK: torch.Tensor, *, scale_rewards: str) -> torch.Tensor:
    """(reward - mean of its group) / standard deviation, [P, K] (arXiv 2402.03300, 4.1.2).

    The standard deviation is that of the group, of all rewards (`batch`), or 1 (`none`; Dr. GRPO, arXiv 2503.20783).
    """
    advantages_PK = rewards_PK - rewards_PK.mean(1, keepdim=True)
    if scale_rewards == "none":
        return advantages_PK
    deviation = rewards_PK.std(1, keepdim=True) if scale_rewards == "group" else rewards_PK.std()
    return advantages_PK / (deviation + EPSILON)


def rloo_advantages(rewards_PK: torch.Tensor, *, normalize: bool) -> torch.Tensor:
    """reward - mean of the other rewards of its group, [P, K] (arXiv 2402.14740, eq. 8).

    `normalize` gives all of them mean 0 and standard deviation 1.
    """
    others = rewards_PK.size(1) - 1
    advantages_PK = rewards_PK - (rewards_PK.sum(1, keepdim=True) - rewards_PK) / others
    if normalize:
        advantages_PK = (advantages_PK - advantages_PK.mean()) / (advantages_PK.std() + EPSILON)
    return advantages_PK


def without_variance(rewards_PK: torch.Tensor) -> torch.Tensor:
    """Whether all rewards of a group are equal, to rounding: such a group teaches nothing, [P]."""
    deviation_P = rewards_PK.std(1)
    return torch.isclose(deviation_P, torch.zeros_like(deviation_P))


def length_slope(rewards_PK: torch.Tensor, lengths_PK: torch.Tensor) -> float:
    """The reward that 100 more tokens bring, by least squares within groups; 0 where all lengths are equal."""
    rewards_PK = (rewards_PK - rewards_PK.mean(1, keepdim=True)).double()
    lengths_PK = lengths_PK.double() - lengths_PK.double().mean(1, keepdim=True)
    spread = float((lengths_PK**2).sum())
    return 100 * float((rewards_PK * lengths_PK).sum()) / spread if spread else 0.0
