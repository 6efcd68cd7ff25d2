"""The recipes that ship with alignloop: found by name where the working directory has no such file, and copied from."""

import sys
from pathlib import Path

from data_schemas.errors import ConfigError
from data_schemas.text import nearest
from data_schemas.yaml_files import read_yaml

CONFIGS = Path(__file__).absolute().parents[2] / "configs"  # in the source tree and in an installed wheel alike
STARTER = "my-run"
# What the starter says of the device, which is one GPU, and what it says on a machine without one.
ON_CPU = {
    "# One GPU. Eight GPUs: {profile: zero3, num_processes: 8}. No GPU: {device: cpu}.": (
        "# No GPU. One GPU: {device: gpu}. Eight GPUs: {profile: zero3, num_processes: 8, device: gpu}."
    ),
    "device: gpu}\n": "device: cpu}\n",
    "bf16: true                  # false on a CPU": "bf16: false                 # true on a GPU",
}


def shipped_recipes() -> dict[str, Path]:
    """The path of every shipped recipe, by its name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def find_recipe(given: Path) -> Path:
    """The recipe file that an argument of the command line means.

    A file of the working directory comes first. `demo`, `demo.yaml` and `configs/demo.yaml` otherwise name the shipped
    recipe, and a line on stderr says so. Raises ConfigError where the argument names neither.
    """
    if given.exists() and not given.is_dir():
        return given
    shipped = shipped_recipes()
    for name, path in shipped.items():
        if given in (Path(name), Path(path.name), Path(CONFIGS.name, path.name)):
            print(f"using the recipe {name} that ships with alignloop: {path}", file=sys.stderr)
            return path
    if given.is_dir():
        return given  # the error of reading it says that it is a folder
    raise ConfigError(
        f"{given} does not exist, and no shipped recipe has this name{nearest(given.stem, list(shipped))}; "
        f"shipped recipes: {', '.join(shipped)}; `alignloop init` writes a recipe to start from"
    )


def copy_recipe(name: str | None, folder: Path, *, on_cpu: bool = False) -> list[Path]:
    """Writes a shipped recipe, or the starter where no name is given, into the folder, with its chat template. `on_cpu`
    is for the starter: it then runs without a GPU.

    Returns the files written, the recipe first. Raises ConfigError for an unknown name, and where a file would be
    overwritten; nothing is written then.
    """
    shipped = shipped_recipes()
    source = CONFIGS / "starter" / f"{STARTER}.yaml" if name is None else shipped.get(name.removesuffix(".yaml"))
    if source is None:
        raise ConfigError(
            f"no shipped recipe has the name {name!r}{nearest(str(name), list(shipped))}; "
            f"shipped recipes: {', '.join(shipped)}"
        )
    # The commands in a recipe's comments name the shipped file.
    text = source.read_text(encoding="utf-8").replace(f"{CONFIGS.name}/{source.name}", source.name)
    if name is None and on_cpu:
        for gpu, cpu in ON_CPU.items():
            text = text.replace(gpu, cpu)
    contents = {folder / source.name: text}
    template = str((read_yaml(source).get("prepare_base") or {}).get("chat_template"))
    if template.endswith(".jinja"):  # a path beside the recipe
        content = (source.parent / template).read_text(encoding="utf-8")
        if not _holds(folder / template, content):
            contents[folder / template] = content
    for path in contents:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path.relative_to(folder)} exists already; move it away, or use another folder")
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return list(contents)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
