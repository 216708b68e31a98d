"""What a failure of S3 reports: the cause and the fix, without secrets."""

import errno
import socket
from pathlib import Path

import pytest
from botocore import exceptions as aws
from botocore.exceptions import ClientError

from tests.unit.worker.model_data.bucket import URI, ignore
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.model_data.artifacts import Artifacts
from vllmendpoint_worker.model_data.s3 import S3Store, explain_failure


def response(
    code: str, status: int = 400, operation: str = "ListObjectsV2", message: str = "hunter2"
) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        operation,
    )  # type: ignore[typeddict-item]


KMS = "User: hunter2 is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:hunter2 because"
OLDER_KMS = "The ciphertext refers to a customer master key that does not exist hunter2"
SSE_C = "The object was stored using a form of Server Side Encryption. The correct parameters must hunter2"
REGION = "Correct AWS_REGION or AWS_ENDPOINT_URL."
BOTH = "Allow s3:GetObject on its objects, and kms:Decrypt on their KMS key if they have one"


def denials() -> list[tuple[ClientError, str]]:
    """Error responses of AWS, with the operation and the message, and the expected explanation."""
    get = "GetObject"
    return [
        (response("AccessDenied", 403), "(AccessDenied). Allow s3:ListBucket on the bucket"),
        (response("AccessDenied", 403, get), BOTH),
        (response("403", 403, "HeadObject"), BOTH),
        (response("AccessDenied", 403, get, KMS), "(AccessDenied). Allow kms:Decrypt on the KMS key"),
        (response("AccessDenied", 403, get, OLDER_KMS), "(AccessDenied). Allow kms:Decrypt on the KMS key"),
        (response("KMS.DisabledException", 400, get), "its KMS key is not usable (KMS.DisabledException)"),
        (response("KMS.NotFoundException", 400, get), "its KMS key is not usable"),
        (response("KMS.KMSInvalidStateException", 400, get), "its KMS key is not usable"),
        (
            response("InvalidObjectState", 403, get),
            "archive storage class, such as S3 Glacier (InvalidObjectS",
        ),
        (response("InvalidRequest", 400, get, SSE_C), "customer-provided encryption key (SSE-C)"),
        (response("400", 400, "HeadObject"), "customer-provided encryption key (SSE-C)"),
        (response("AuthorizationHeaderMalformed"), REGION),
        (response("PermanentRedirect", 301), REGION),
        (response("301", 301, "HeadObject"), REGION),
        (response("IllegalLocationConstraintException"), REGION),
        (
            response("RequestTimeTooSkewed", 403),
            "the clock of the pod's node is wrong (RequestTimeTooSkewed)",
        ),
        (response("AccountProblem", 403), "the AWS account cannot use S3"),
        (response("UnrecognizedClientException", 403), "credentials are not valid"),
        (response("XAdminUserNotFound", 404), "credentials are not valid (XAdminUserNotFound)"),
        (response("InvalidRange", 416, get), "changed during the download"),
        (response("ThrottlingException", 400), "the store limits the requests"),
        (response("KMS.ThrottlingException", 400, get), "the store limits the requests"),
        (response("NotImplemented", 501), "Correct AWS_ENDPOINT_URL"),
    ]


def test_only_errors_of_the_region_mention_it() -> None:
    for error, message in denials():
        assert ("AWS_REGION" in explain_failure(error).fix) == (message == REGION), error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (response("NoSuchBucket", 404), "a bucket that does not exist"),
        (response("AccessDenied", 403), "cannot be read with the worker's credentials"),
        (response("403", 403, "HeadObject"), "cannot be read with the worker's credentials"),
        (response("InvalidAccessKeyId", 403), "credentials are not valid (InvalidAccessKeyId)"),
        (response("SignatureDoesNotMatch", 403), "credentials are not valid"),
        (response("ExpiredToken"), "credentials are not valid"),
        (response("AccessDenied", 403, "AssumeRoleWithWebIdentity"), "role cannot be assumed (AccessDenied)"),
        (response("404", 404, "HeadObject"), "changed during the download"),
        (response("404", 404), "the endpoint is not an S3 service (404). Correct AWS_ENDPOINT_URL"),
        *denials(),
        (FileNotFoundError(errno.ENOENT, "hunter2", "hunter2"), "AWS_WEB_IDENTITY_TOKEN_FILE"),
        (response("SlowDown", 503), "the store limits the requests (SlowDown). Wait"),
        (response("InternalError", 500), "S3 answers InternalError (HTTP 500). Check the store's log"),
        (response("NeverSeen"), "S3 answers NeverSeen (HTTP 400). Look up the code in the store's doc"),
        (response("<html>hunter2"), "an unknown error"),
        (aws.NoCredentialsError(), "has no AWS credentials"),
        (aws.PartialCredentialsError(provider="env", cred_var="hunter2"), "incomplete"),
        (aws.CredentialRetrievalError(provider="x", error_msg="hunter2"), "incomplete"),
        (aws.NoRegionError(), "AWS_REGION"),
        (aws.EndpointConnectionError(endpoint_url="http://hunter2"), "(EndpointConnectionError)"),
        (aws.ConnectTimeoutError(endpoint_url="http://hunter2"), "cannot be reached"),
        (aws.ReadTimeoutError(endpoint_url="http://hunter2"), "cannot be reached"),
        (aws.SSLError(endpoint_url="http://hunter2", error="x"), "AWS_CA_BUNDLE"),
        (aws.ParamValidationError(report="hunter2"), "an invalid bucket"),
        (ValueError("Invalid endpoint: hunter2"), "AWS_ENDPOINT_URL is not a URL"),
        (OSError(errno.ENOSPC, "hunter2"), "does not fit on the disk"),
        (OSError(errno.EDQUOT, "hunter2"), "does not fit on the disk"),
        (PermissionError(errno.EACCES, "hunter2"), "cannot be written"),
        (OSError(errno.EROFS, "hunter2"), "cannot be written"),
        (aws.FlexibleChecksumError(error_msg="hunter2"), "(FlexibleChecksumError)"),
    ],
)
def test_every_failure_has_an_explanation_without_secrets(error: Exception, message: str) -> None:
    explained = explain_failure(error)
    assert message in f"{explained.fault}. {explained.fix}"
    assert "hunter2" not in str(explained)


def test_a_defect_of_the_worker_is_not_explained_as_a_failure_of_the_store() -> None:
    with pytest.raises(ZeroDivisionError):
        explain_failure(ZeroDivisionError())


@pytest.mark.parametrize("endpoint", ["hunter2", "http://", "http://::1:9000", "http://fd00::5"])
def test_an_endpoint_that_is_not_a_url_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ArtifactsError, match="AWS_ENDPOINT_URL is not a URL") as raised:
        Artifacts(URI, str(tmp_path)).fetch(ignore)
    assert "hunter2" not in str(raised.value)
    assert raised.value.fix == "Use http(s)://host:port, and put an IPv6 address in brackets."


def test_an_endpoint_can_be_an_ipv6_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    with socket.socket(socket.AF_INET6) as closed:
        closed.bind(("::1", 0))  # it does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://[::1]:{closed.getsockname()[1]}")
        with pytest.raises(ArtifactsError, match=r"the S3 endpoint cannot be reached \(EndpointConnection"):
            Artifacts(URI, str(tmp_path)).fetch(ignore)


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "")
    S3Store()
