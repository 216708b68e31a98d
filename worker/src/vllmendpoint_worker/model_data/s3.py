"""Reads objects of an S3 bucket with boto3, and explains each failure in one message.

boto3 finds credentials, region and endpoint itself: in the pod's environment (``AWS_*``), from its service
account (a web identity token, or EKS Pod Identity), and in ``AWS_ENDPOINT_URL`` for a store that is not
AWS's.
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

from vllmendpoint_worker.errors import ArtifactsError

__all__ = ["CHANGED", "Location", "ObjectStore", "S3Store", "StoredObject", "explain_failure"]

_URI: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][-a-z0-9.]{1,61}[a-z0-9])(?:/(?P<key>.*))?", re.DOTALL)
_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,64}")

# Short timeouts, because the worker reports the problem and retries.
_CONFIG: Final = Config(
    connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3}
)
_TRANSFER: Final = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=8
)

_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "403", "Forbidden", "AccessDeniedException"})
_READ_OPERATIONS: Final = frozenset({"GetObject", "HeadObject"})
_KMS_MESSAGE: Final = re.compile(r"kms:|ciphertext|master key|KMS key", re.IGNORECASE)
_SSE_C_MESSAGE: Final = re.compile(r"server.side.encryption", re.IGNORECASE)


CHANGED: Final = ("changed during the download", "Do not change it while workers start.")
"""The fault and the fix for an object that differs from the list of a moment ago."""

_CHANGED_CODES: Final = frozenset({"NoSuchKey", "404", "PreconditionFailed", "412", "InvalidRange", "416"})


@dataclass(frozen=True, slots=True)
class _Explanation:
    codes: str
    """Error codes of S3, STS, KMS and stores with the API of S3."""
    fault: str
    fix: str


_EXPLANATIONS: Final = (
    _Explanation(
        "NoSuchBucket NoSuchAccessPoint InvalidBucketName",
        "names a bucket that does not exist",
        "Create the bucket, or correct the URI.",
    ),
    _Explanation(
        "ExpiredToken ExpiredTokenException SignatureDoesNotMatch InvalidAccessKeyId InvalidClientTokenId "
        "InvalidIdentityToken InvalidToken InvalidSecurity TokenRefreshRequired UnrecognizedClientException "
        "XAdminUserNotFound",  # of versitygw
        "cannot be downloaded, because the AWS credentials are not valid",
        "Renew the credentials of the pod.",
    ),
    _Explanation(
        "AuthorizationHeaderMalformed PermanentRedirect TemporaryRedirect Redirect 301 302 307 "
        "IllegalLocationConstraintException IncorrectEndpoint",
        "cannot be downloaded, because the bucket is in another region or at another endpoint",
        "Correct AWS_REGION or AWS_ENDPOINT_URL.",
    ),
    _Explanation(
        "RequestTimeTooSkewed RequestExpired",
        "cannot be downloaded, because the clock of the pod's node is wrong",
        "Synchronize the clock.",
    ),
    _Explanation(
        "AccountProblem NotSignedUp",
        "cannot be downloaded, because the AWS account cannot use S3",
        "Check the account's billing and its sign-up for S3.",
    ),
    _Explanation(
        "InvalidObjectState ObjectNotInActiveTierError",
        "contains an object in an archive storage class, such as S3 Glacier",
        "Restore the object, or copy it to another storage class.",
    ),
    _Explanation(
        "KMS.DisabledException KMS.InvalidStateException KMS.KMSInvalidStateException KMS.NotFoundException "
        "KMS.InvalidKeyUsageException KMS.KeyUnavailableException DisabledException KMSInvalidStateException",
        "contains an object that cannot be decrypted, because its KMS key is not usable",
        "Enable or restore the key, or encrypt the objects with another key.",
    ),
    _Explanation(
        "SlowDown Throttling ThrottlingException KMS.ThrottlingException RequestLimitExceeded 429 "
        "TooManyRequests TooManyRequestsException BandwidthLimitExceeded RequestTimeout",
        "cannot be downloaded, because the store limits the requests",
        "Wait for the next attempt, or raise the store's limits.",
    ),
    _Explanation(
        "404 405 MethodNotAllowed NotImplemented UnsupportedOperation",
        "cannot be downloaded, because the endpoint is not an S3 service",
        "Correct AWS_ENDPOINT_URL.",
    ),
)
_BY_CODE: Final = {code: explanation for explanation in _EXPLANATIONS for code in explanation.codes.split()}


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket, and the key of one object or the prefix of several."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str) -> "Location":
        """Raises ArtifactsError."""
        found = _URI.fullmatch(uri)
        if found is None:
            raise ArtifactsError("is not an S3 URI", "Use s3://bucket/prefix/.")
        return cls(found["bucket"], found["key"] or "")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """``size`` in bytes. ``etag`` changes with the content."""

    key: str
    etag: str
    size: int


class ObjectStore(Protocol):
    """Raises the errors of its client, for :func:`explain_failure`."""

    def objects(self, location: Location) -> Iterator[StoredObject]: ...

    def download(
        self, location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None: ...


class S3Store:
    """One session of boto3, with fresh credentials."""

    def __init__(self) -> None:
        for name in [name for name, value in os.environ.items() if name.startswith("AWS_") and not value]:
            del os.environ[name]  # boto3 would search a profile with an empty name
        self._client: Any = boto3.session.Session().client("s3", config=_CONFIG)

    def objects(self, location: Location) -> Iterator[StoredObject]:
        """All objects whose key starts with the location's key."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=location.key
        )
        for page in pages:
            for found in page.get("Contents", ()):
                yield StoredObject(found["Key"], found["ETag"].strip('"'), int(found["Size"]))

    def download(
        self, location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None:
        """boto3's threads call ``progress`` with a number of bytes."""
        self._client.download_file(
            location.bucket, stored.key, str(path), Callback=progress, Config=_TRANSFER
        )


def explain_failure(error: Exception) -> ArtifactsError:
    """The fault and the fix. Repeats neither a value of the environment nor an address."""
    if isinstance(error, ArtifactsError):
        return error
    if (last := getattr(error, "last_exception", None)) is not None:  # boto3's RetriesExceededError
        return explain_failure(last)
    if isinstance(error, aws.ClientError):
        return _explain_response(error)
    return _explain_client(error) or _explain_disk(error) or _explain_other(error)


def _explain_client(error: Exception) -> ArtifactsError | None:
    """Errors of credentials, region and connection."""
    if isinstance(error, aws.NoCredentialsError):
        return ArtifactsError(
            "cannot be downloaded, because the pod has no AWS credentials",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY with worker.envFrom, or give the pod a role.",
        )
    if isinstance(
        error, aws.PartialCredentialsError | aws.CredentialRetrievalError | aws.UnauthorizedSSOTokenError
    ):
        return ArtifactsError(
            f"cannot be downloaded, because the AWS credentials are incomplete ({type(error).__name__})",
            "Correct the AWS_* variables or the service account's role.",
        )
    if isinstance(error, aws.NoRegionError | aws.InvalidRegionError):
        fault = "cannot be downloaded, because the AWS region is not valid"
        return ArtifactsError(fault, "Correct AWS_REGION.")
    if isinstance(error, aws.SSLError):
        return ArtifactsError(
            "cannot be downloaded, because the TLS certificate of the S3 endpoint is not trusted",
            "Check AWS_ENDPOINT_URL, and set AWS_CA_BUNDLE to the endpoint's CA.",
        )
    if isinstance(error, aws.ConnectionError | aws.HTTPClientError):
        return ArtifactsError(
            f"cannot be downloaded, because the S3 endpoint cannot be reached ({type(error).__name__})",
            "Check AWS_ENDPOINT_URL, AWS_REGION and the network policies.",
        )
    return None


def _explain_response(error: Any) -> ArtifactsError:
    """An error response of S3, STS or KMS."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    code = code if _CODE.fullmatch(code) else "an unknown error"
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    operation, message = str(error.operation_name), str(error.response.get("Error", {}).get("Message", ""))
    if operation.startswith("AssumeRole"):
        return ArtifactsError(
            f"cannot be downloaded, because the service account's role cannot be assumed ({code})",
            "Correct the role's trust policy, or the service account's annotation.",
        )
    if code in _DENIED:
        fault = f"cannot be read with the worker's credentials ({code})"
        return ArtifactsError(fault, _required_permission(operation, message))
    if operation in _READ_OPERATIONS and code in _CHANGED_CODES:
        return ArtifactsError(*CHANGED)
    if operation in _READ_OPERATIONS and (code == "400" or _SSE_C_MESSAGE.search(message)):
        return ArtifactsError(
            f"contains an object that S3 does not return ({code})",
            "Store the objects without a customer-provided encryption key (SSE-C).",
        )
    if (explanation := _BY_CODE.get(code)) is not None:
        return ArtifactsError(f"{explanation.fault} ({code})", explanation.fix)
    return ArtifactsError(
        f"cannot be downloaded, because S3 answers {code} (HTTP {status})",
        "Check the store's log." if status >= 500 else "Look up the code in the store's documentation.",
    )


def _required_permission(operation: str, message: str) -> str:
    """A denial by KMS is an error of the request that reads the object."""
    if operation not in _READ_OPERATIONS:
        return "Allow s3:ListBucket on the bucket."
    if _KMS_MESSAGE.search(message):
        return "Allow kms:Decrypt on the KMS key of its objects."
    return "Allow s3:GetObject on its objects, and kms:Decrypt on their KMS key if they have one."


def _explain_disk(error: Exception) -> ArtifactsError | None:
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError):
        return ArtifactsError(
            "cannot be downloaded, because a file that an AWS_* variable names does not exist",
            "Mount the token (AWS_WEB_IDENTITY_TOKEN_FILE) or the CA (AWS_CA_BUNDLE).",
        )
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            fix = "Increase the size of the volume of SAGEMAKER_MODEL_PATH."
            return ArtifactsError("does not fit on the disk", fix)
        case errno.ENAMETOOLONG:
            return ArtifactsError(
                "contains a path that is too long for the disk", "Shorten its folder names."
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ArtifactsError(
                "cannot be written to the folder of SAGEMAKER_MODEL_PATH",
                "Mount a volume there that the worker can write to.",
            )
    return None


def _explain_other(error: Exception) -> ArtifactsError:
    """Raises ``error`` if it comes neither from boto3 nor from the operating system."""
    if isinstance(error, aws.ParamValidationError):
        return ArtifactsError("contains an invalid bucket or key", "Use s3://bucket/prefix/.")
    if isinstance(error, aws.EndpointResolutionError) or (
        isinstance(error, ValueError) and "endpoint" in str(error).lower()
    ):
        return ArtifactsError(
            "cannot be downloaded, because AWS_ENDPOINT_URL is not a URL",
            "Use http(s)://host:port, and put an IPv6 address in brackets.",
        )
    if isinstance(error, aws.BotoCoreError | Boto3Error | OSError):
        return ArtifactsError(
            f"cannot be downloaded ({type(error).__name__})", "Check the AWS_* variables and the folder."
        )
    raise error
