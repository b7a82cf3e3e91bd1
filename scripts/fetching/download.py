"""Files over HTTP, by the client of huggingface_hub: its progress bar, its timeouts, its retries.

A connection that is silent for HF_HUB_DOWNLOAD_TIMEOUT seconds (10) is opened again, five times, before it is given up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO

from latent_models.codec import first_line
from scripts.job.errors import UsageError


def download(
    what: str, url: str, file: BinaryIO, size: int | None = None, headers: Mapping[str, str] | None = None
) -> None:
    """Appends what `file`, open for appending, lacks of `url`; `size` is that of the whole. UsageError names `what`."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # of each retry it would print a long address, in the middle of the bar
    with told(what):
        http_get(
            url,
            file,
            resume_size=file.tell(),
            expected_size=size,
            headers={**(headers or {}), "Accept-Encoding": "identity"},  # else sizes are those of what is compressed
            displayed_filename=what,
        )


def without_secrets(url: str) -> str:
    """An address as it may be shown and kept: without user, password and query, which may hold a key."""
    scheme, slashes, rest = url.partition("://")
    return scheme + slashes + re.split("[?#]", rest.rpartition("@")[2])[0]


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turns whatever the client raises into one UsageError about `what`; a full disk stays what it is."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE=1 is set; unset it on the machine with internet") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = f"HTTP {status}; check the address and the server"
        if isinstance(error, GatedRepoError):
            reason = f"HTTP {status}, its terms must be accepted first; do so on its page and set HF_TOKEN"
        elif isinstance(error, RepositoryNotFoundError) or status == 404:
            reason = f"HTTP {status}, not there or private; check the name (and HF_TOKEN, if it is private)"
        elif status in (401, 403):
            reason = f"HTTP {status}, no permission; check HF_TOKEN"
        raise UsageError(f"{what}: {reason}") from None
    except httpx2.TimeoutException:
        raise UsageError(
            f"{what}: the connection stalls (longer than HF_HUB_DOWNLOAD_TIMEOUT, several times); run it again to go on"
        ) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"broke off ({first_line(error)}); check the connection and run it again to go on"
        raise UsageError(f"{what}: {reason}") from None
