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

from vllmendpoint_worker.errors import ArtifactsError

__all__ = ["Location", "S3Store", "Store", "StoredObject", "explain_failure"]

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
_READ_OPERATIONS: Final = frozenset({"GetObject", "HeadObject"})
_KMS_MESSAGE: Final = re.compile(r"kms:|ciphertext|master key|KMS key", re.IGNORECASE)
_SSE_C_MESSAGE: Final = re.compile(r"server.side.encryption", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Advice:
    codes: str
    """Of S3, STS or KMS, and of stores that speak S3."""
    what: str
    fix: str


_CHANGED: Final = _Advice(
    "NoSuchKey 404 PreconditionFailed 412 InvalidRange 416",
    "changed while it was being fetched",
    "leave it as it is for a moment",
)
"""For an object that was listed a moment ago."""

_ADVICE: Final = (
    _Advice(
        "NoSuchBucket NoSuchAccessPoint InvalidBucketName",
        "names a bucket that does not exist",
        "create it, or name another",
    ),
    _Advice(
        "ExpiredToken ExpiredTokenException SignatureDoesNotMatch InvalidAccessKeyId InvalidClientTokenId "
        "InvalidIdentityToken InvalidToken InvalidSecurity TokenRefreshRequired UnrecognizedClientException "
        "XAdminUserNotFound",  # of versitygw
        "cannot be fetched, the AWS credentials are not valid",
        "renew them where the pod has them from",
    ),
    _Advice(
        "AuthorizationHeaderMalformed PermanentRedirect TemporaryRedirect Redirect 301 302 307 "
        "IllegalLocationConstraintException IncorrectEndpoint",
        "cannot be fetched, the bucket is in another region or at another endpoint",
        "correct AWS_REGION or AWS_ENDPOINT_URL",
    ),
    _Advice(
        "RequestTimeTooSkewed RequestExpired",
        "cannot be fetched, the clock of the pod's node is wrong",
        "synchronize it",
    ),
    _Advice(
        "AccountProblem NotSignedUp",
        "cannot be fetched, the AWS account may not use S3",
        "see the account's billing and its sign-up for S3",
    ),
    _Advice(
        "InvalidObjectState ObjectNotInActiveTierError",
        "holds an object in an archive storage class, such as S3 Glacier",
        "restore it, or copy it to another storage class",
    ),
    _Advice(
        "KMS.DisabledException KMS.InvalidStateException KMS.KMSInvalidStateException KMS.NotFoundException "
        "KMS.InvalidKeyUsageException KMS.KeyUnavailableException DisabledException KMSInvalidStateException",
        "holds an object that cannot be decrypted, its KMS key cannot be used",
        "enable or restore the key, or encrypt the objects with another one",
    ),
    _Advice(
        "SlowDown Throttling ThrottlingException KMS.ThrottlingException RequestLimitExceeded 429 "
        "TooManyRequests TooManyRequestsException BandwidthLimitExceeded RequestTimeout",
        "cannot be fetched, the store limits the requests",
        "wait for the next attempt, or raise the store's limits",
    ),
    _Advice(
        "404 405 MethodNotAllowed NotImplemented UnsupportedOperation",
        "cannot be fetched, there is no S3 service at the endpoint",
        "correct AWS_ENDPOINT_URL",
    ),
)
_BY_CODE: Final = {code: advice for advice in _ADVICE for code in advice.codes.split()}

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
    """Raises whatever its client raises: :func:`explain_failure` knows what it means."""

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


def explain_failure(error: Exception) -> ArtifactsError:
    """What is wrong and what to do. Repeats no value of the environment and no address."""
    if isinstance(error, ArtifactsError):
        return error
    if (last := getattr(error, "last_exception", None)) is not None:  # boto3's RetriesExceededError
        return explain_failure(last)
    if isinstance(error, aws.ClientError):
        return _explain_response(error)
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
    return _explain_other(error)


def _explain_response(error: Any) -> ArtifactsError:
    """What S3, or STS before it, answered."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    code = code if _CODE.fullmatch(code) else "an unknown error"
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    if str(error.operation_name).startswith("AssumeRole"):
        return ArtifactsError(
            f"cannot be fetched, the service account's role cannot be assumed ({code})",
            "correct the role's trust policy, or the service account's annotation",
        )
    operation, message = str(error.operation_name), str(error.response.get("Error", {}).get("Message", ""))
    if code in _DENIED:
        return ArtifactsError(
            f"may not be read with the worker's credentials ({code})",
            _required_permission(operation, message),
        )
    if operation in _READ_OPERATIONS and code in _CHANGED.codes.split():
        return ArtifactsError(_CHANGED.what, _CHANGED.fix)
    if operation in _READ_OPERATIONS and (code == "400" or _SSE_C_MESSAGE.search(message)):
        return ArtifactsError(
            f"holds an object that S3 does not give out ({code})",
            "store objects that are encrypted with a customer-provided key (SSE-C) without it",
        )
    if (advice := _BY_CODE.get(code)) is not None:
        return ArtifactsError(f"{advice.what} ({code})", advice.fix)
    return ArtifactsError(
        f"cannot be fetched, S3 answers {code} (HTTP {status})",
        "see the store's log" if status >= 500 else "see what the code means in the store's documentation",
    )


def _required_permission(operation: str, message: str) -> str:
    """What the credentials lack; a denial of KMS comes as one of the request that reads the object."""
    if operation not in _READ_OPERATIONS:
        return "allow s3:ListBucket on the bucket"
    if _KMS_MESSAGE.search(message):
        return "allow kms:Decrypt on the KMS key of its objects"
    return "allow s3:GetObject on its objects, and kms:Decrypt on their KMS key if they have one"


def _explain_other(error: Exception) -> ArtifactsError:
    if isinstance(error, FileNotFoundError):
        return ArtifactsError(
            "cannot be fetched, a file that the AWS_* variables name is not there",
            "mount the token (AWS_WEB_IDENTITY_TOKEN_FILE) or the CA (AWS_CA_BUNDLE)",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactsError("does not fit on the disk", "give the folder of SAGEMAKER_MODEL_PATH more room")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return ArtifactsError("holds a path that is too long for the disk", "give its folders shorter names")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactsError(
            "cannot be written to the folder of SAGEMAKER_MODEL_PATH",
            "mount a volume there that the worker may write",
        )
    if isinstance(error, aws.ParamValidationError):
        return ArtifactsError("names no valid bucket or key", "give s3://bucket/prefix/")
    if isinstance(error, aws.EndpointResolutionError) or (
        isinstance(error, ValueError) and "endpoint" in str(error).lower()
    ):
        return ArtifactsError(
            "cannot be fetched, AWS_ENDPOINT_URL is no URL",
            "give http(s)://host:port, and put an IPv6 address into brackets",
        )
    if isinstance(error, aws.BotoCoreError | Boto3Error | OSError):
        return ArtifactsError(
            f"cannot be fetched ({type(error).__name__})", "see the AWS_* variables and the folder"
        )
    raise error
