"""Caches pretrained models for machines without internet.

    python -m scripts.cache_models facebook/bart-base gpt2-large sentence-transformers/all-mpnet-base-v2

puts each model under pre_trained_models/<name>, weights as safetensors only. Run it where there is internet, then copy
the folder. An interrupted download continues where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from latent_models.codec import MODELS_DIR, first_line
from scripts.errors import UsageError, run

# Configuration, tokenizer and safetensors; never pickled weights, code, or the same weights for other frameworks.
WANTED = ["*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/*.safetensors"]
UNWANTED = ["onnx/*", "openvino/*", "coreml/*"]


def cache(name: str, folder: Path) -> Path:
    """Fetches one model; raises UsageError where it cannot be had or has no safetensors."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    place = folder / name
    try:
        snapshot_download(name, local_dir=place, allow_patterns=WANTED, ignore_patterns=UNWANTED)
    except HFValidationError:
        raise UsageError(f"{name!r} is no model name; expected one such as facebook/bart-base") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UsageError(
            f"{name}: cannot be fetched ({first_line(error)}); check the name and the connection"
        ) from None
    if not list(place.rglob("*.safetensors")):
        raise UsageError(f"{place}: the repository has no safetensors weights; expected a model saved as safetensors")
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="names of models on the hub")
    parser.add_argument("--output_dir", default=str(MODELS_DIR), help="folder that receives them")
    options = parser.parse_args()
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UsageError("HF_HUB_OFFLINE=1 is set; unset it on the machine with internet")
    for name in options.models:
        place = cache(name, Path(options.output_dir))
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
        print(f"{place}: {size:,.0f} MB", file=sys.stdout)


if __name__ == "__main__":
    run(main)
