"""Uploading an export to the hub, by `huggingface_hub`."""

from pathlib import Path

from nanochat.checkpoint.certificate import FREE, colour_of, files_of, require_not_red


def to_upload(folder: Path) -> dict[str, int]:
    """Name -> size in bytes of the files to upload."""
    extra = [folder / name for name in FREE] + sorted((folder / ".eval_results").glob("*.yaml"))
    there = {**files_of(folder), **{str(p.relative_to(folder)): p for p in extra if p.is_file()}}
    return {name: path.stat().st_size for name, path in sorted(there.items())}


def push(folder: Path, name: str, *, private: bool, confirm: bool, force: bool) -> None:
    """Show what would be uploaded to the repository `name`, and upload it with `confirm`.
    ValueError for a folder without a certificate or with a red one, or if the hub refuses.
    """
    require_not_red(folder, force=force)
    files, found = to_upload(folder), colour_of(folder)
    if found.colour == "red" and not force:
        raise ValueError(found.why)
    for file, size in files.items():
        print(f"{size:>14,}  {file}")
    kind = "private" if private else "public"
    print(f"certificate {found.colour}: {found.why}")
    if not confirm:
        print(
            f"would upload {len(files)} files, {sum(files.values()):,} bytes, to the {kind} "
            f"{name}; add confirm=true"
        )
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=f"nanochat export, certificate {found.colour}",
        )
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        # RuntimeError: a file that did not arrive, whose cause says why
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the hub refused the upload: {reason}; log in with `hf auth login`, then type "
            "the same again"
        ) from error
    print(f"uploaded: {done}")
