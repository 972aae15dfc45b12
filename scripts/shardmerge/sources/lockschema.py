"""What a lock may hold: checked before anything of it is used, as a header is.

A lock is a file of whoever wrote the recipe. Names in it become paths, hashes and repositories go
to the Hub, and ranges of bytes are read.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import ge, sub
from typing import Any

from shardmerge.base.dtypes import DTYPES, tensor_bytes
from shardmerge.base.errors import UserError, did_you_mean
from shardmerge.base.filenames import all_plain, is_commit, safe_name, safe_tensor
from shardmerge.base.printable import is_printable
from shardmerge.base.weightfolders import component_of, folder_of, in_folder, own_name
from shardmerge.formats.announcement import SIDE_FILES
from shardmerge.sources.store import Origin, Store
from shardmerge.sources.stores import kinds
from shardmerge.sources.tokenizer.files import NAMED_TOKENS

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_IDENTITIES = {"sha256": _SHA256, "git_oid": _GIT_OID, "sample": _SHA256}
_SOURCE_KEYS = {
    *("kind", "repo", "revision", "commit", "role", "config", "files"),
    *("vocabulary", "chat_template", "tokens", "side_files", "contents"),
    *("prompts", "special_tokens", "left_out", "one_file"),
}
_FILE_KEYS = {"size", *_IDENTITIES, "tensors"}
#: Files that each kind of source has.
_WANTED = {
    "model": ("config.json",),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "checkpoint": (),
}
#: Longest content of a tensor that a lock holds; real ones have some hundred bytes.
MOST_CONTENT_BYTES = 1 << 16
_LARGEST = 1 << 63
_WHOLE = {int}
#: Of the values of a tensor's row: dtype, shape, begin and end.
_ROW_TYPES = [{str}, {list}, {int}, {int}]
_MOST_DIMENSIONS = 64


class LockError(Exception):
    """Something in a lock is not as it must be.

    Args:
        message: What is wrong, without what it is wrong of.
        path: Keys that lead to it.
        hint: What to write instead, if that can be guessed.
    """

    def __init__(self, message: str, path: tuple[str, ...], hint: str | None = None) -> None:
        self.message, self.path, self.hint = message, path, hint
        super().__init__(message)


def check_lock(data: Mapping[str, Any]) -> None:
    """Check a lock of the version that this program writes.

    Vocabularies are only looked at: they are long, and ``tokenizer.vocabulary`` checks what it
    reads of them.

    Raises:
        LockError: If anything in it is not what this program would write.
    """
    _keys(data, {"version", "sources", "texts", "vocabularies"}, ())
    for name, file in _table(data.get("texts", {}), ("texts",)).items():
        _text_file(name, _table(file, ("texts", name)), ("texts", name))
    vocabularies = _table(data.get("vocabularies", {}), ("vocabularies",))
    for name, text in vocabularies.items():
        path = ("vocabularies", name)
        _match(name, _SHA256, "a SHA-256", path)
        if not isinstance(text, str):
            raise LockError("has tokens that are no text", path)
    for name, source in _table(data.get("sources"), ("sources",)).items():
        path = ("sources", name)
        if not (name and is_printable(name)):
            raise LockError("is called by no plain text", path)
        _source(_table(source, path), vocabularies, path)


def folder_by_role(role: str | None, *, one_file: bool) -> Callable[[str], str]:
    """Return what tells which folder with weights of its own a source's file lies in.

    Args:
        role: Of the source.
        one_file: Whether it is a file that was asked for by its name, which has no folders.
    """
    if role != "checkpoint":
        return folder_of
    return (lambda file: "") if one_file else component_of


def _text_file(name: str, file: Mapping[str, Any], path: tuple[str, ...]) -> None:
    if not (name and is_printable(name)):
        raise LockError("is called by no plain text", path)
    _keys(file, {"size", "sha256"}, path)
    if not _is_count(file.get("size")):
        raise LockError(f"{_brief(file.get('size'))} is no number of bytes", (*path, "size"))
    _match(file.get("sha256"), _SHA256, "64 hexadecimal digits", (*path, "sha256"))


def told(path: tuple[str, ...]) -> str:
    """Return keys of a lock in words: ``model 'a/b', file 'x', tensor 'y', shape``."""
    if path[:1] == ("vocabularies",):
        return "vocabularies" if len(path) == 1 else f"vocabulary {_brief(path[1])}"
    if path[:1] != ("sources",) or len(path) == 1:
        return ", ".join(map(_short, path))
    names, words = path[1:], []
    for label, before in (("model", None), ("file", "files"), ("tensor", "tensors")):
        if before is not None:
            if names[:1] != (before,) or len(names) < 2:
                break
            names = names[1:]
        words.append(f"{label} {_brief(names[0])}")
        names = names[1:]
    return ", ".join([*words, *map(_short, names)])


def _source(
    source: Mapping[str, Any], vocabularies: Mapping[str, Any], path: tuple[str, ...]
) -> None:
    _keys(source, _SOURCE_KEYS, path)
    store = _store(source.get("kind"), path)
    role = source.get("role", "model")
    if not isinstance(role, str) or role not in _WANTED:
        *names, last = (f"`{name}`" for name in _WANTED)
        raise LockError(f"is none of {', '.join(names)} and {last}", (*path, "role"))
    _origin(source, store, path)
    _text(source, "chat_template", path, lambda text: True)
    for key in ("vocabulary", "tokens"):
        if key in source:
            _match(source[key], _SHA256, "a SHA-256", (*path, key))
    if "vocabulary" in source and source["vocabulary"] not in vocabularies:
        raise LockError("is not among the lock's vocabularies", (*path, "vocabulary"))
    config = _table(source.get("config"), (*path, "config"))
    if role == "checkpoint" and config:
        raise LockError("does not go with `role: checkpoint`", (*path, "config"))
    _unicode(config, (*path, "config"))
    files = _table(source.get("files"), (*path, "files"))
    wanted, any_name = _WANTED[role], role == "checkpoint"
    one_file = source.get("one_file", False)
    if type(one_file) is not bool or (one_file and (role != "checkpoint" or len(files) != 1)):
        raise LockError("goes with `role: checkpoint` and one file alone", (*path, "one_file"))
    folder = folder_by_role(role, one_file=one_file)
    if missing := [name for name in wanted if name not in files]:
        raise LockError(f"lacks {missing[0]}", (*path, "files"))
    seen: set[str] = set()
    for name, file in files.items():
        _file(name, _table(file, (*path, "files", name)), store, (*path, "files", name), any_name)
        own, within = file.get("tensors", {}), folder(name)
        full = [in_folder(within, tensor) for tensor in own] if within else own
        if not seen.isdisjoint(full):
            tensor = own_name(next(called for called in full if called in seen), within)
            raise LockError("is in another file too", (*path, "files", name, "tensors", tensor))
        seen.update(full)
    _side_files(source, files, path)
    _contents(source, files, path)
    _prompts(source, path)
    _special_tokens(source, path)
    names = source.get("left_out", [])
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise LockError("is no list of files", (*path, "left_out"))


def _side_files(source: Mapping[str, Any], files: Mapping[str, Any], path: tuple[str, ...]) -> None:
    path = (*path, "side_files")
    for name, content in _table(source.get("side_files", {}), path).items():
        if name not in SIDE_FILES or name not in files:
            raise LockError("is no such file of the model", (*path, name))
        _unicode(_table(content, (*path, name)), (*path, name))


def _contents(source: Mapping[str, Any], files: Mapping[str, Any], path: tuple[str, ...]) -> None:
    path = (*path, "contents")
    contents = _table(source.get("contents", {}), path)
    rows = [file["tensors"] for file in files.values() if contents and "tensors" in file]
    tensors = {name: row for table in rows for name, row in table.items()}
    for name, text in contents.items():
        if name not in tensors:
            raise LockError("is no tensor of the model", (*path, name))
        *_, begin, end = tensors[name]
        if end - begin > MOST_CONTENT_BYTES or not _is_base64(text, end - begin):
            raise LockError(f"is not the content of a tensor of {end - begin} bytes", (*path, name))


def _prompts(source: Mapping[str, Any], path: tuple[str, ...]) -> None:
    path = (*path, "prompts")
    for text, ids in _table(source.get("prompts", {}), path).items():
        _unicode(text, path)
        if not isinstance(ids, list) or not all(map(_is_count, ids)):
            raise LockError("has tokens that are no list of ids", (*path, text))


def _special_tokens(source: Mapping[str, Any], path: tuple[str, ...]) -> None:
    path = (*path, "special_tokens")
    for name, token in _table(source.get("special_tokens", {}), path).items():
        if name not in NAMED_TOKENS or not isinstance(token, str):
            raise LockError("is no special token", (*path, name))
        _unicode(token, (*path, name))


def _store(kind: Any, path: tuple[str, ...]) -> type[Store]:
    known = kinds()
    if not isinstance(kind, str) or kind not in known:
        *names, last = (f"`{name}`" for name in sorted(known))
        message = f"{_brief(kind)} is none of {', '.join(names)} and {last}"
        raise LockError(message, (*path, "kind"))
    return known[kind]


def _origin(source: Mapping[str, Any], store: type[Store], path: tuple[str, ...]) -> None:
    if not store.remote:
        for key in Origin._fields:
            if key in source:
                raise LockError(f"does not go with `kind: {store.kind}`", (*path, key))
        return
    repo = source.get("repo")
    if not isinstance(repo, str) or not store.pins(repo):
        raise LockError(f"{_brief(repo)} is no {store.repo_form}", (*path, "repo"))
    if not is_commit(source.get("commit")):
        message = f"{_brief(source.get('commit'))} is no commit of 40 hexadecimal digits"
        raise LockError(message, (*path, "commit"))
    _text(source, "revision", path, lambda text: bool(text) and is_printable(text))


def _file(
    name: str,
    file: Mapping[str, Any],
    store: type[Store],
    path: tuple[str, ...],
    any_name: bool,
) -> None:
    try:
        safe_name(name, None, "")
    except UserError as error:
        raise LockError(error.message, path) from None
    _keys(file, _FILE_KEYS, path)
    size = file.get("size")
    if not _is_count(size):
        raise LockError(f"{_brief(size)} is no number of bytes", (*path, "size"))
    held = [key for key in _IDENTITIES if key in file]
    # a large file has both once two of its contents were found to share a sample
    alone = len(held) == 1 or set(held) == {"sha256", "sample"}
    if not alone or not set(held) <= set(store.known_by):
        wanted = " or ".join(f"`{key}`" for key in store.known_by)
        raise LockError(f"must be known by {wanted}", path)
    for key in held:
        digits = 40 if key == "git_oid" else 64
        _match(file[key], _IDENTITIES[key], f"{digits} hexadecimal digits", (*path, key))
    if "tensors" in file:
        path = (*path, "tensors")
        _tensors(_table(file["tensors"], path), size, path, any_name)


def _tensors(table: Mapping[str, Any], size: int, path: tuple[str, ...], any_name: bool) -> None:
    plain = all_plain(table)
    if plain and _fit_at_sight(list(table.values()), size):
        return
    ranges = []
    for name, row in table.items():
        where = (*path, name)
        try:
            if not plain:
                safe_tensor(name, "", any_name=any_name)
        except UserError as error:
            raise LockError(error.message, where) from None
        ranges.append((*_range(row, size, where), name))
    position = 0
    for begin, end, name in sorted(ranges):
        if begin < position:
            raise LockError("overlaps with the tensor before it", (*path, name))
        position = end


def _fit_at_sight(rows: Sequence[Any], size: int) -> bool:
    """Whether rows of tensors are as this program writes them: one after the other, each right.

    One look at each column, as a large mixture has a hundred thousand rows. Where it says no, each
    row must be looked at.
    """
    if set(map(type, rows)) != {list} or set(map(len, rows)) != {4}:
        return False
    columns = tuple(zip(*rows, strict=True))
    if [set(map(type, column)) for column in columns] != _ROW_TYPES:
        return False
    dtypes, shapes, begins, ends = columns
    if not _WHOLE.issuperset(map(type, chain.from_iterable(shapes))):
        return False
    if begins[0] < 0 or ends[-1] > size or not all(map(ge, begins[1:], ends)):
        return False
    kinds = set(zip(dtypes, map(tuple, shapes), map(sub, ends, begins), strict=True))
    try:
        for dtype, shape, length in kinds:
            _range([dtype, list(shape), 0, length], size, ())
    except LockError:
        return False
    return True


def _range(row: Any, size: int, path: tuple[str, ...]) -> tuple[int, int]:
    """Return a tensor's range of bytes, shown to fit its type, its shape and its file."""
    if not isinstance(row, list) or len(row) != 4:
        raise LockError("is not `[dtype, shape, begin, end]`", path)
    dtype, shape, begin, end = row
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise LockError(f"has the unknown dtype {_brief(dtype)}", path)
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        raise LockError("has a shape that is no list of sizes", path)
    numbers = (*shape, begin, end)
    if set(map(type, numbers)) != _WHOLE or min(numbers) < 0 or max(numbers) >= _LARGEST:
        raise LockError("has a shape or range that is not whole numbers", path)
    if not begin <= end <= size:
        raise LockError(f"ends at byte {end}, but the file has {size}", path)
    if end - begin != tensor_bytes(dtype, shape):
        raise LockError(f"has {end - begin} bytes, which are not those of {dtype}{shape}", path)
    return begin, end


def _table(value: Any, path: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise LockError("is not an object", path)
    return value


def _keys(table: Mapping[str, Any], known: set[str], path: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise LockError(f"has the unknown key {_brief(key)}", path, did_you_mean(key, known))


def _text(
    source: Mapping[str, Any], key: str, path: tuple[str, ...], good: Callable[[str], bool]
) -> None:
    if key not in source:
        return
    if not isinstance(source[key], str) or not good(source[key]):
        raise LockError("is no plain text", (*path, key))
    _unicode(source[key], (*path, key))


def _match(value: Any, pattern: re.Pattern[str], what: str, path: tuple[str, ...]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise LockError(f"{_brief(value)} is not {what}", path)


def _unicode(value: Any, path: tuple[str, ...]) -> None:
    """Refuse text that no UTF-8 file can hold, however deep it lies."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError:
                raise LockError("has a character that is no Unicode", path) from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and is_printable(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_base64(text: Any, length: int) -> bool:
    """Whether a text is base64 of that many bytes."""
    if not isinstance(text, str) or len(text) != -(-length // 3) * 4 or not text.isascii():
        return False
    try:
        return len(b64decode(text, validate=True)) == length
    except ValueError:
        return False


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


def _brief(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a deep list
        text = type(value).__name__
    return _short(text)
