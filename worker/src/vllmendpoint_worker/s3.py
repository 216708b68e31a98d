"""Objects of an S3 bucket, through boto3, and what a failure means in one sentence.

Credentials, region and endpoint are boto3's own business: the pod's environment (``AWS_*``), its service
account (a web identity token, or EKS Pod Identity), ``AWS_ENDPOINT_URL`` for a store that is not AWS's.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws
from botocore.config import Config

from .errors import ArtifactsError

__all__ = ["Location", "S3Store", "Store", "StoredObject", "explained"]

_URI: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][-a-z0-9.]{1,61}[a-z0-9])(?:/(?P<key>.*))?", re.DOTALL)
_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")

# Short waits: the worker tries again by itself, and meanwhile says what is wrong.
_CONFIG: Final = Config(
    connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3}
)
_TRANSFER: Final = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=8
)

_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "403", "Forbidden", "AccessDeniedException"})
_BAD_CREDENTIALS: Final = re.compile(
    "AuthorizationHeaderMalformed|ExpiredToken|ExpiredTokenException|SignatureDoesNotMatch"
    "|Invalid(AccessKeyId|ClientTokenId|IdentityToken|Token)"
)
_UNREACHABLE: Final = (aws.ConnectionError, aws.HTTPClientError)


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket, and the key of one object or the beginning of several."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> "Location":
        """Raises ArtifactsError."""
        found = _URI.fullmatch(uri)
        if found is None:
            raise ArtifactsError("is no S3 URI", "give s3://bucket/prefix/")
        return cls(found["bucket"], found["key"] or "")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """``size`` in bytes; ``etag`` changes with the content."""

    key: str
    etag: str
    size: int


class Store(Protocol):
    """Raises whatever its client raises: :func:`explained` knows what it means."""

    def objects(self, location: Location) -> Iterator[StoredObject]: ...

    def download(
        self, location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None: ...


class S3Store:
    """One session: credentials are looked up anew with each store."""

    def __init__(self) -> None:
        for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
            del os.environ[name]  # empty is unset; boto3 would look for a profile without a name
        self._client: Any = boto3.session.Session().client("s3", config=_CONFIG)

    def objects(self, location: Location) -> Iterator[StoredObject]:
        """All whose key begins with the location's."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=location.key
        )
        for page in pages:
            for found in page.get("Contents", ()):
                yield StoredObject(found["Key"], found["ETag"].strip('"'), int(found["Size"]))

    def download(
        self, location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None:
        """``progress`` is called with bytes, from boto3's threads."""
        self._client.download_file(
            location.bucket, stored.key, str(path), Callback=progress, Config=_TRANSFER
        )


def explained(error: Exception) -> ArtifactsError:
    """What is wrong and what to do. Repeats no value of the environment and no address."""
    if isinstance(error, ArtifactsError):
        return error
    if (last := getattr(error, "last_exception", None)) is not None:  # boto3's RetriesExceededError
        return explained(last)
    if isinstance(error, aws.ClientError):
        return _refused(error)
    if isinstance(error, aws.NoCredentialsError):
        return ArtifactsError(
            "cannot be fetched, no AWS credentials were found",
            "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY by worker.envFrom, or the pod a role",
        )
    if isinstance(
        error, aws.PartialCredentialsError | aws.CredentialRetrievalError | aws.UnauthorizedSSOTokenError
    ):
        return ArtifactsError(
            f"cannot be fetched, the AWS credentials are not complete ({type(error).__name__})",
            "correct the AWS_* variables or the service account's role",
        )
    if isinstance(error, aws.NoRegionError | aws.InvalidRegionError):
        return ArtifactsError("cannot be fetched, the AWS region is not valid", "correct AWS_REGION")
    if isinstance(error, aws.SSLError):
        return ArtifactsError(
            "cannot be fetched, there is no trusted TLS connection to the S3 endpoint",
            "see AWS_ENDPOINT_URL, and name the endpoint's CA in AWS_CA_BUNDLE",
        )
    if isinstance(error, _UNREACHABLE):
        return ArtifactsError(
            f"cannot be fetched, the S3 endpoint cannot be reached ({type(error).__name__})",
            "see AWS_ENDPOINT_URL, AWS_REGION and the network policies",
        )
    return _other(error)


def _refused(error: Any) -> ArtifactsError:
    """What S3, or STS before it, answered."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    code = code if _CODE.fullmatch(code) else "an unknown error"
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if str(error.operation_name).startswith("AssumeRole"):
        return ArtifactsError(
            f"cannot be fetched, the service account's role cannot be assumed ({code})",
            "correct the role's trust policy, or the service account's annotation",
        )
    if code == "NoSuchBucket":
        return ArtifactsError("names a bucket that does not exist", "create it, or name another")
    if code in _DENIED:
        return ArtifactsError(
            f"may not be read with the worker's credentials ({code})",
            "allow s3:ListBucket on the bucket and s3:GetObject on its objects",
        )
    if _BAD_CREDENTIALS.fullmatch(code):
        return ArtifactsError(
            f"cannot be fetched, the AWS credentials are not valid ({code})",
            "renew them where the pod has them from",
        )
    reading = error.operation_name in ("GetObject", "HeadObject")
    if reading and code in ("NoSuchKey", "404", "PreconditionFailed", "412"):
        return ArtifactsError("changed while it was being fetched", "leave it as it is for a moment")
    return ArtifactsError(
        f"cannot be fetched, S3 answers {code} (HTTP {status})",
        "see the store's log" if status >= 500 else "correct it, or AWS_ENDPOINT_URL and AWS_REGION",
    )


def _other(error: Exception) -> ArtifactsError:
    if isinstance(error, FileNotFoundError):
        return ArtifactsError(
            "cannot be fetched, a file that the AWS_* variables name is not there",
            "mount the token (AWS_WEB_IDENTITY_TOKEN_FILE) or the CA (AWS_CA_BUNDLE)",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactsError("does not fit on the disk", "give the folder of SAGEMAKER_MODEL_PATH more room")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactsError(
            "cannot be written to the folder of SAGEMAKER_MODEL_PATH",
            "mount a volume there that the worker may write",
        )
    if isinstance(error, aws.ParamValidationError):
        return ArtifactsError("names no valid bucket or key", "give s3://bucket/prefix/")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return ArtifactsError("cannot be fetched, AWS_ENDPOINT_URL is no URL", "give http(s)://host:port")
    if isinstance(error, aws.BotoCoreError | Boto3Error | OSError):
        return ArtifactsError(
            f"cannot be fetched ({type(error).__name__})", "see the AWS_* variables and the folder"
        )
    raise error
