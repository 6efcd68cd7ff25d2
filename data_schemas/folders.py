"""Which files of a folder are read: those of one split, where names say that it has several.

A file's split is that of its name, else that of the nearest folder above it (below the given one):
    a folder that `DatasetDict.save_to_disk` wrote      the split's folder
    train_sft-00000-of-00002.parquet                     the name before the numbers, if it contains a word below
    train.jsonl, pairs_test.csv, dev/                    the word that it begins or ends with

Test rows must not be trained on, so splits are never mixed: the training split is read, unless another is given.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from data_schemas.errors import ConfigError, DataError
from data_schemas.files import check_name, read_json
from data_schemas.formats import EXPECTED_FORMATS, compression_of, format_of, shorten

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLITS = {word: split for split, words in WORDS.items() for word in words}
ALL = "all"  # in place of a split: every file
SAVED_STATE = "state.json"  # of a folder that Dataset.save_to_disk wrote
SAVED_DICT = "dataset_dict.json"
SAVED_NAMES = (SAVED_STATE, SAVED_DICT, "dataset_info.json")  # they describe rows and hold none
log = logging.getLogger(__name__)


def data_files(path: Path, split: str | None = None) -> list[Path]:
    """The file itself, or the files of a folder that belong to the split; without one, those of the training split.

    Raises DataError for a folder without data, and where a name is not UTF-8; ConfigError for a split that the path
    does not have, and where no split is given and the names leave open which files are for training.
    """
    if not path.is_dir():
        if split is not None:
            raise ConfigError(f"{path} is a file and has no split {split!r}; leave the split out")
        return [path]
    files = _all_files(path)
    if not files:
        raise DataError(f"{path} is a folder without data; expected {EXPECTED_FORMATS} as files in it")
    chosen = files if split == ALL else _of_split(path, files, split)
    return [path / file for file in chosen]


def _all_files(folder: Path) -> list[Path]:
    """The data files below a folder, relative to it and sorted. Of a saved data set, the files that its state lists."""
    found: list[Path] = []
    of_folder: dict[Path, list[str] | None] = {}
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        if any(part[0] == "." for part in inside.parts) or not format_of(file) or file.is_dir():
            continue
        check_name(file)
        if file.parent not in of_folder:
            of_folder[file.parent] = _saved_files(file.parent)
        saved = of_folder[file.parent]
        if file.name in SAVED_NAMES and (saved is not None or (file.parent / SAVED_DICT).is_file()):
            continue
        if saved is None or file.name in saved or file.suffix != ".arrow":  # other .arrow files there are caches
            found.append(inside)
    return sorted(found)


def _saved_files(folder: Path) -> list[str] | None:
    """The files of a data set that `save_to_disk` wrote into the folder; None for any other folder.

    Raises DataError where one of them is missing.
    """
    listed = (read_json(folder / SAVED_STATE) or {}).get("_data_files")
    if not isinstance(listed, list):
        return None
    names = [str(item.get("filename")) for item in listed if isinstance(item, dict)]
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f"{folder} is not complete: {SAVED_STATE} lists {name}, which does not exist")
    return names


def _of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(folder, file), []).append(file)
    named = [name for name in by_split if name]
    if split is not None:
        wanted = next((name for name in (split, SPLITS.get(split)) if name in named), None)
        if wanted is None:
            raise ConfigError(f"{folder} has no split {split!r}; its files are of {_listed(by_split) or 'no split'}")
        return by_split[wanted]
    if len(by_split) == 1 or set(named) <= {"train"}:
        return files
    if "train" not in named or "" in by_split:
        raise ConfigError(
            f"{folder} has files of several splits ({_listed(by_split)}); name the one to read, as in "
            f"{folder}:{next(iter(named))}, or {folder}:{ALL} for all of them together"
        )
    others = ", ".join(name for name in named if name != "train")
    log.info("%s: only the split train is read, not %s; %s:%s reads another", folder, others, folder, "SPLIT")
    return by_split["train"]


def _listed(by_split: dict[str, list[Path]]) -> str:
    return ", ".join(f"{name or 'no split'}: {shorten(str(files[0]), 60)}" for name, files in by_split.items())


def split_of(folder: Path, file: Path) -> str:
    """The split of a file in a folder, relative to which its path is given; the empty string where no name says one."""
    for parent, name in zip(file.parents, file.parent.parts[::-1], strict=False):
        if (folder / parent.parent / SAVED_DICT).is_file():
            return name
    stem = file.name[: -len(format_of(file) + compression_of(file))]
    if shard := re.fullmatch(r"(.+)-\d{5}-of-\d{5}", stem):
        return shard[1] if _split_of_name(shard[1]) else _split_of_names(file.parent.parts[::-1])
    return _split_of_names([stem, *file.parent.parts[::-1]])


def _split_of_names(names: Iterable[str]) -> str:
    return next(filter(None, map(_split_of_name, names)), "")


def _split_of_name(name: str) -> str:
    words = re.findall(r"[a-z]+", name.lower())
    return next((SPLITS[word] for word in words[:1] + words[-1:] if word in SPLITS), "")
