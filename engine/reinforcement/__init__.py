"""Reinforcement learning with GRPO (arXiv 2402.03300) and RLOO (arXiv 2402.14740).

Training is divided into windows. At the start of a window the present policy answers a batch of prompts, K answers to
each; the answers are scored; and the optimizer then takes `steps_per_window` x `num_iterations` steps on them. The loss
is TRL's own; what differs is how the model is called on it, how answers are sampled and scored, and when training is
saved, so that a resumed training equals one that was not interrupted.

| file | what it does |
|---|---|
| `arguments.py` | the keys: ours, and TRL's GRPOConfig without those that this project replaces |
| `schedule.py` | which prompts a window has, and which answers an optimizer step sees |
| `rollouts.py` | samples answers from a model in memory, divided among the processes |
| `rewards.py` | the reward model and the functions that score answers, and their weights |
| `advantages.py` | rewards to advantages: shaping, penalties, GRPO, RLOO |
| `answer_batches.py` | the tensors that TRL's losses read, and the packed row of answers with shared prompts |
| `log_probs.py` | log-probs of answers under the policy and the reference |
| `evaluation.py` | reward and KL on held-out prompts |
| `trainer.py` | the windows in TRL's trainers |
"""
