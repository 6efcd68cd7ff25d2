"""Bad ways to launch steps: what the profile fsdp2 does not support, and what no scheduler but SLURM starts."""

from collections.abc import Callable

from data_schemas import key_rules
from tests.bad_inputs.bad_runs import ON_GPUS, submit
from tests.bad_inputs.cases import Call, Case, Place

MACHINES = "profile: ddp, device: cpu, num_machines: 2, num_processes: 4, wrapper: env, main_process_ip: 10.0.0.1"


def under_fsdp2(section: str, *settings: str, processes: int = 2) -> Callable[[Place], Call]:
    def make(place: Place) -> Call:
        place.patch.setattr(key_rules, "is_installed", lambda package: True)
        place.write("texts.jsonl", [{"text": "A cow says moo."}] * 20)
        launch = f"{section}.launch={{profile: fsdp2, device: gpu, num_processes: {processes}, wrapper: env}}"
        return place.alignloop("plan", *place.recipe(launch, *settings))

    return make


CASES = [
    Case(
        "FSDP2 in one process",
        under_fsdp2("sft", processes=1),
        "sft.launch: profile fsdp2 with num_processes=1 has nothing to divide; use profile single",
    ),
    Case(
        "FSDP2 where answers are sampled",
        under_fsdp2("annotate"),
        "annotate.launch: annotate generates answers, which profile fsdp2 does not support; use ddp",
    ),
    Case(
        "FSDP2 for RL",
        under_fsdp2("rl", "round_stages=[annotate, reward_model, dpo, rl]"),
        "rl.launch: rl samples answers from the weights in memory, which profile fsdp2 divides; use profile ddp or",
    ),
    Case(
        "quantized base under FSDP2",
        under_fsdp2("sft", "sft.use_peft=true", "sft.load_in_4bit=true"),
        "sft.launch: profile fsdp2 divides weights among processes, which quantized ones do not support; try profile",
    ),
    Case(
        "Muon under FSDP2",
        under_fsdp2(
            "pretrain",
            "base_model=null",
            "data.documents=[texts.jsonl]",
            "pretrain.block_size=32",
            "pretrain.muon_learning_rate=0.02",
        ),
        "pretrain.launch: muon_learning_rate needs complete matrices, which profile fsdp2 divides; use profile ddp, or",
    ),
    Case(
        "submit a step on several machines to SkyPilot",  # beside steps on a GPU without a name
        submit("defaults.bf16=false", *ON_GPUS, f"dpo.launch={{{MACHINES}}}", to="skypilot"),
        "round-1.dpo runs on 2 machines, which only --to slurm supports; set dpo: {launch: {num_machines: 1}}, or use",
    ),
    Case(
        "submit a step on several machines to Kubernetes",  # without an image
        submit("defaults.bf16=false", f"dpo.launch={{{MACHINES}}}", to="k8s"),
        "round-1.dpo runs on 2 machines, which only --to slurm supports; set dpo: {launch: {num_machines: 1}}, or use",
    ),
    Case(
        "submit with less time than a checkpoint takes",
        submit(
            "defaults.bf16=false", "launch.grace_seconds=7200", *ON_GPUS, "launch.gpu=h100", to="skypilot", hours="1"
        ),
        "round-0.sft has a time limit of 60 minutes, which is not longer than launch.grace_seconds=7200; give more",
    ),
]
