"""`freedive data get NAME`: shards of a published data set from the Hugging Face hub, checked by their hashes, resumable.

Writes the parquet or JSONL files and get.json: repository, commit, and path, size and SHA-256 of each file. Files that are there
already with the right hash are not fetched again; one that was cut off goes on where it stopped.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freedive.runs import UserError, file_hash, human_bytes, option, progress, write_json_atomic
from freedive.runs.errors import is_disk_full
from freedive.runs.progress import Bar

# name -> repository, folder in it, licence
SETS = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample/10BT", "ODC-By 1.0"),
    "fineweb": ("HuggingFaceFW/fineweb", "sample/10BT", "ODC-By 1.0"),
    "finepdfs": ("HuggingFaceFW/finepdfs", "data/eng_Latn/train", "ODC-By 1.0"),
}
TIMEOUT = 60.0  # seconds without a byte
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".warc.gz", ".txt")


@dataclass(frozen=True)
class GetConfig:
    """Download a published data set."""

    name: str = option(help=f"{', '.join(SETS)}, or OWNER/NAME of a data set on the Hugging Face hub", positional=True)
    shards: int = option(1, "number of files, in order of their names; 0: all")
    folder: str | None = option(None, "only files below this folder of the repository (known sets: their 10-billion-token sample)")
    revision: str = option("main", "branch, tag or commit")
    out: Path | None = option(None, "folder to write (default: the data set's name)")
    dry_run: bool = option(False, "list the files and stop")


def run(c: GetConfig) -> Path:
    """Downloads; returns the folder. UserError for an unknown set, no network, a full disk or a wrong hash."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("downloading needs the package huggingface-hub, which is not installed", hint="pip install huggingface-hub") from None
    if c.name not in SETS and "/" not in c.name:
        raise UserError(f"no data set is called {c.name}", hint=f"known: {', '.join(SETS)}; or OWNER/NAME")
    if c.shards < 0:
        raise UserError(f"--shards is {c.shards}", hint="at least 0 (all)")
    repository, folder, licence = SETS.get(c.name, (c.name, "", ""))
    folder = (folder if c.folder is None else c.folder).strip("/")
    out = c.out or Path(c.name.rpartition("/")[2])
    try:
        commit, files = _files(huggingface_hub, repository, folder, c.revision)
    except UserError:
        raise
    except Exception as error:  # the hub's own, and those of the HTTP library it uses
        raise UserError(f"{repository} could not be listed: {_first_line(error)}", hint="check the name and the network") from None
    chosen = files[: c.shards] if c.shards else files
    total = sum(file["size"] for file in chosen)
    print(f"{repository} at {commit[:12]}: {len(chosen)} of {len(files)} files, {human_bytes(total)}{', licence ' + licence if licence else ''}")
    if c.dry_run:
        for file in chosen:
            print(f"  {file['path']}  {human_bytes(file['size'])}")
        return out
    out.mkdir(parents=True, exist_ok=True)
    missing = [file for file in chosen if not _whole(out / file["path"], file)]
    needed = sum(file["size"] for file in missing)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{human_bytes(needed)} are to be fetched and {human_bytes(free)} are free in {out}", hint="lower --shards, or choose another --out"
        )
    headers = huggingface_hub.utils.build_hf_headers()  # with the user's token, if there is one
    with progress.bar(needed, "data get") as bar:
        for file in missing:
            bar.advance(0, text=file["path"])
            url = huggingface_hub.hf_hub_url(repository, file["path"], repo_type="dataset", revision=commit)
            fetch(url, headers, out / file["path"], file, bar)
    write_json_atomic(out / "get.json", {"repository": repository, "commit": commit, "files": chosen})
    print(f"wrote {out}; next: freedive data {out} --preset none --out runs/data")
    return out


def fetch(url: str, headers: dict[str, str], path: Path, file: dict[str, Any], bar: Bar) -> None:
    """Downloads to `path`.part, from where it stopped (the hub's own client begins anew), checks size and hash, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.is_file() else 0
    if start > file["size"]:
        part.unlink()
        start = 0
    bar.advance(start)
    try:
        if start < file["size"] or not part.is_file():
            request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
            for name, value in headers.items():
                request.add_unredirected_header(name, value)  # the token is not for the storage that the hub redirects to
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, open(part, "ab") as target:
                if start and answer.status != 206:  # it sends everything
                    bar.advance(-start)
                    target.truncate(0)
                while block := answer.read(1 << 20):
                    target.write(block)
                    bar.advance(len(block))
        size = part.stat().st_size
        if size < file["size"]:
            raise OSError(f"the connection ended after {size:,} of {file['size']:,} bytes")
    except (OSError, http.client.HTTPException) as error:
        if is_disk_full(error):
            raise
        raise UserError(f"{file['path']} could not be fetched: {_first_line(error)}", hint="the same command goes on where it stopped") from None
    if not _whole(part, file):
        part.unlink()
        raise UserError(f"{file['path']} has another SHA-256 than the hub says, and was removed", hint="run the same command again")
    os.replace(part, path)


def _files(hub: Any, repository: str, folder: str, revision: str) -> tuple[str, list[dict[str, Any]]]:
    """(commit, files below `folder` with path, size and sha256 (None: the hub keeps none))."""
    info = hub.HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    files = []
    for entry in info.siblings or ():
        inside = not folder or entry.rfilename.startswith(folder + "/")
        if inside and entry.rfilename.endswith(SUFFIXES) and not any(part in ("", ".", "..") for part in entry.rfilename.split("/")):
            files.append({"path": entry.rfilename, "size": int(entry.size or 0), "sha256": entry.lfs.sha256 if entry.lfs else None})
    if not files:
        folders = sorted({entry.rfilename.rpartition("/")[0] for entry in info.siblings or () if entry.rfilename.endswith(SUFFIXES)})
        raise UserError(
            f"{repository} has no data file in {folder or 'it'}", hint=f"--folder, one of: {', '.join(_some(folders))}" if folders else None
        )
    return str(info.sha), sorted(files, key=lambda file: file["path"])


def _some(names: Iterable[str], most: int = 10) -> list[str]:
    names = list(names)
    return names[:most] + ([f"... ({len(names)} in all)"] if len(names) > most else [])


def _whole(path: Path, file: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != file["size"]:
        return False
    return file["sha256"] is None or file_hash(path) == file["sha256"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
