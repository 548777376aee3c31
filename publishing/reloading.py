"""Does a folder give others the model that it gives us?"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel
from vitrail.publishing.errors import PublishingError
from vitrail.publishing.model_folder import has_code


_TOLERANCE = 1e-4  # of the largest output; float32 rounds to 1e-6 of it


def check_reload(folder: Path, files: dict[str, Path]) -> None:
    """Makes sure that a new process, with these files, transformers and no vitrail, computes what this one does.

    Args:
        folder: the model as vitrail loads it here.
        files: what of it is published, by their paths there; the new process is given nothing else.

    Raises:
        PublishingError: the model cannot be loaded, here or there, or what it says of two images differs.
    """
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (48, width, 3), dtype=np.uint8) for width in (48, 64)]
    try:
        classifies = "ForImageClassification" in str(ViTConfig.from_pretrained(folder).architectures)
        model_class = ViTForImageClassification if classifies else ViTModel
        network = model_class.from_pretrained(folder, dtype=torch.float32)
        expected = _outputs(network, ViTImageProcessor.from_pretrained(folder), images)
    except (InputError, StrictDataclassError) as error:
        raise PublishingError(f"{folder} is not published: {str(error).splitlines()[-1].strip()}") from error
    if not np.isfinite(expected).all():
        raise PublishingError(f"{folder} is not published, because its model answers with NaN; train it anew.")
    found = _outputs_elsewhere(folder, files, images, "classifier" if classifies else "backbone")
    if found.shape != expected.shape or np.abs(found - expected).max() > _TOLERANCE * np.abs(expected).max():
        raise PublishingError(
            f"{folder} is not published, because others would get another model: transformers in a new process "
            "computes something else than vitrail does here; save the model there again."
        )


def _outputs(
    network: ViTForImageClassification | ViTModel, processor: ViTImageProcessor, images: list[np.ndarray]
) -> np.ndarray:
    """The logits of a classifier, (B, K), or the tokens of a model without a head, (B, T, D)."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # as in a new process
    try:
        with torch.inference_mode():
            said = network(**processor(images, return_tensors="pt"))
    finally:
        torch.set_float32_matmul_precision(precision)
    return said[0].numpy()


def _outputs_elsewhere(folder: Path, files: dict[str, Path], images: list[np.ndarray], kind: str) -> np.ndarray:
    with TemporaryDirectory(prefix="vitrail-") as scratch:
        model, given, outputs = (Path(scratch, name) for name in ("model", "images.npz", "outputs.npz"))
        for name, path in files.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).symlink_to(path.resolve())
        np.savez(given, *images)
        program = Path(__file__).with_name("fresh_process.py")
        trust = "trusted" if has_code(files) else "untrusted"
        done = subprocess.run(
            [sys.executable, "-P", program, model, given, outputs, kind, trust],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch, "modules"))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise PublishingError(f"{folder} is not published, because others could not load it: {reason}")
        with np.load(outputs) as archive:
            return archive["arr_0"]
