"""artifacts, archive, s3: what is fetched, that it is taken whole or not at all, and what a failure says."""

import asyncio
import errno
import gzip
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions as aws
from botocore.exceptions import ClientError

from vllmendpoint_api import CONDITION_REASONS, Condition, Problem, Reason
from vllmendpoint_worker.errors import ArtifactsError
from vllmendpoint_worker.model_data import artifacts
from vllmendpoint_worker.model_data.artifacts import Artifacts
from vllmendpoint_worker.model_data.s3 import Location, S3Store, StoredObject, explain_failure
from vllmendpoint_worker.process.backoff import pause

URI = "s3://bucket/my-model/"


class Bucket:
    """Objects by key; ``broken`` is raised instead of an object's content."""

    def __init__(self, **contents: bytes) -> None:
        self.contents: dict[str, bytes] = {key.replace("__", "/"): value for key, value in contents.items()}
        self.broken: dict[str, Exception] = {}
        self.fetched: list[str] = []

    def objects(self, location: Location) -> Iterator[StoredObject]:
        for key, content in sorted(self.contents.items()):
            if key.startswith(location.key):
                yield StoredObject(key, f"etag-{hash(content)}", len(content))

    def download(
        self, location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None:
        if stored.key in self.broken:
            raise self.broken[stored.key]
        self.fetched.append(stored.key)
        path.write_bytes(self.contents[stored.key])
        progress(stored.size)


def nothing(_: str) -> None:
    return None


def fetch(bucket: Bucket, folder: Path, uri: str = URI) -> None:
    Artifacts(uri, str(folder), open_store=lambda: bucket).fetch(nothing)


def content(folder: Path) -> dict[str, str]:
    """Files but for the worker's own."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".vllmendpoint" not in path.parts
    }


# --- fetching


def test_all_of_it_arrives(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    told: list[str] = []
    bucket = Bucket(**{"my-model__model.py": b"code", "my-model__sub__w": b"weights", "other": b"no"})
    Artifacts(URI, str(folder), open_store=lambda: bucket).fetch(told.append)
    assert content(folder) == {"model.py": "code", "sub/w": "weights"}
    assert told[-1] == "model data: 11 of 11 bytes, 2 objects"
    assert sorted(path.name for path in (folder / ".vllmendpoint").iterdir()) == [
        "lock",
        "manifest.json",
    ]


def test_a_restart_fetches_what_changed_and_takes_away_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("the user's own")
    bucket = Bucket(**{"my-model__a": b"1", "my-model__b": b"2", "my-model__c__d": b"3", "my-model__e": b"4"})
    fetch(bucket, tmp_path)
    bucket.fetched.clear()
    fetch(bucket, tmp_path)
    assert bucket.fetched == []
    del bucket.contents["my-model/c/d"], bucket.contents["my-model/b"]
    bucket.contents |= {"my-model/a": b"new", "my-model/b/f": b"5", "my-model/c": b"6"}
    (tmp_path / "e").unlink()  # somebody took it away
    fetch(bucket, tmp_path)
    assert bucket.fetched == ["my-model/a", "my-model/b/f", "my-model/c", "my-model/e"]
    assert content(tmp_path) == {"a": "new", "b/f": "5", "c": "6", "e": "4", "mine": "the user's own"}


def test_half_of_it_is_never_taken(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__a": b"1", "my-model__b": b"2"})
    fetch(bucket, tmp_path)
    bucket.contents |= {"my-model/a": b"new", "my-model/b": b"new"}
    bucket.broken["my-model/b"] = aws.EndpointConnectionError(endpoint_url="http://hunter2")
    worker = Artifacts(URI, str(tmp_path), open_store=lambda: bucket)
    with pytest.raises(ArtifactsError, match="cannot be reached"):
        worker.fetch(nothing)
    assert content(tmp_path) == {"a": "1", "b": "2"}
    bucket.broken.clear()
    bucket.fetched.clear()
    worker.fetch(nothing)
    assert bucket.fetched == ["my-model/b"]  # a is there from the first attempt
    assert content(tmp_path) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("taken_back", [False, True])
def test_killed_while_files_are_moved_it_is_made_whole_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_back: bool
) -> None:
    bucket = Bucket(**{"my-model__a": b"1", "my-model__b": b"2", "my-model__old": b"3"})
    fetch(bucket, tmp_path)
    before = dict(bucket.contents)
    del bucket.contents["my-model/old"]
    bucket.contents |= {"my-model/a": b"A", "my-model/b": b"B", "my-model/c": b"C"}
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == "b" and "new" in self.parts:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(bucket, tmp_path)
    if taken_back:  # of the same sizes: only the manifest knows that a is not what it was
        bucket.contents = before
    fetch(bucket, tmp_path)
    assert content(tmp_path) == (
        {"a": "1", "b": "2", "old": "3"} if taken_back else {"a": "A", "b": "B", "c": "C"}
    )


def test_an_object_that_changes_meanwhile(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__a": b"1"})
    download = bucket.download

    def changed(
        location: Location, stored: StoredObject, path: Path, progress: Callable[[int], None]
    ) -> None:
        download(location, stored, path, progress)
        path.write_bytes(b"longer")

    bucket.download = changed  # type: ignore[method-assign]
    with pytest.raises(ArtifactsError, match="changed while"):
        fetch(bucket, tmp_path)
    assert content(tmp_path) == {}


def test_a_manifest_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__a": b"1"})
    fetch(bucket, tmp_path)
    for wrong in ("{", "[]", '{"files": 1}'):
        (tmp_path / ".vllmendpoint" / "manifest.json").write_text(wrong)
        bucket.fetched.clear()
        fetch(bucket, tmp_path)
        assert bucket.fetched == ["my-model/a"]


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    class Huge(Bucket):
        def objects(self, location: Location) -> Iterator[StoredObject]:
            yield StoredObject("my-model/a", "e", 1 << 60)

    with pytest.raises(ArtifactsError, match=r"takes \d+ bytes, and the disk has \d+"):
        fetch(Huge(), tmp_path)


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactsError, match="NotADirectoryError"):
        fetch(Bucket(**{"my-model__a": b"1"}), tmp_path / "file")


# --- model.tar.gz


def packed(*members: tuple[str, bytes | None, str]) -> bytes:
    """Members: name, content, type (``f``, ``d``, or a link's target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if kind == "d":
                info.type = tarfile.DIRTYPE
            elif kind != "f":
                info.type, info.linkname = tarfile.SYMTYPE, kind
            tar.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


@pytest.mark.parametrize("uri", [URI, "s3://bucket/my-model/model.tar.gz"])
def test_one_archive_is_unpacked(tmp_path: Path, uri: str) -> None:
    bucket = Bucket()
    key = "my-model/model.tar.gz"
    bucket.contents[key] = packed((".", None, "d"), ("./model.py", b"code", "f"), ("sub/w", b"1", "f"))
    fetch(bucket, tmp_path, uri)
    assert content(tmp_path) == {"model.py": "code", "sub/w": "1"}
    fetch(bucket, tmp_path, uri)
    assert bucket.fetched == [key]
    bucket.contents[key] = packed(("other.py", b"new", "f"))
    fetch(bucket, tmp_path, uri)
    assert content(tmp_path) == {"other.py": "new"}
    (tmp_path / "other.py").unlink()
    fetch(bucket, tmp_path, uri)
    assert content(tmp_path) == {"other.py": "new"}


def test_a_mended_archive_is_unpacked_anew(tmp_path: Path) -> None:
    bucket = Bucket()
    key = "my-model/model.tar.gz"
    bucket.contents[key] = packed(("half", b"1", "f"), ("../a", b"1", "f"))
    with pytest.raises(ArtifactsError, match="leaves the folder"):
        fetch(bucket, tmp_path)
    bucket.contents[key] = packed(("whole", b"1", "f"))
    fetch(bucket, tmp_path)
    assert content(tmp_path) == {"whole": "1"}


def test_an_archive_among_others_is_a_file(tmp_path: Path) -> None:
    bucket = Bucket(**{"my-model__model.tar.gz": b"x", "my-model__model.py": b"y"})
    fetch(bucket, tmp_path)
    assert content(tmp_path) == {"model.tar.gz": "x", "model.py": "y"}


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (packed(("../a", b"1", "f")), "leaves the folder"),
        (packed(("/etc/a", b"1", "f")), "leaves the folder"),
        (packed(("a\nb", b"1", "f")), r"a name with a control character \('a.nb'\): rename the file"),
        (packed(("a\udcff", b"1", "f")), r"a name that is not UTF-8 \('a.udcff'\): rename the file"),
        (packed(("x" * 256, b"1", "f")), "a name longer than 255 bytes"),
        (packed(("a", b"1", "f"), ("a/b", b"1", "f")), "'a' both as a file and as a folder"),
        (packed(("a/b", b"1", "f"), ("a", b"1", "f")), "'a' both as a file and as a folder"),
        (packed(("a", b"1", "f"), ("a", None, "d")), "'a' both as a file and as a folder"),
        (packed(("a", None, "/etc"), ("a/b", b"1", "f")), "a link or a device"),
        (packed((".vllmendpoint/manifest.json", b"1", "f")), "the worker's own"),
        (packed(("a", None, "d")), "without a file"),
        (packed(("a", b"1" * 9999, "f"))[:60], "is damaged"),
        (packed(("a", b"1", "f"))[:-6] + b"xxxxxx", "is damaged"),
        (b"no archive", "is damaged"),
        (gzip.compress(b"no archive" * 100), "is damaged"),
    ],
    ids=range(15),  # an archive holds the time it was made
)
def test_bad_archives_are_refused_whole(tmp_path: Path, archive: bytes, says: str) -> None:
    bucket = Bucket()
    bucket.contents["my-model/model.tar.gz"] = archive
    folder = tmp_path / "model"
    with pytest.raises(ArtifactsError, match=says):
        fetch(bucket, folder)
    assert content(folder) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- what a failure says


def refusal(
    code: str, status: int = 400, operation: str = "ListObjectsV2", message: str = "hunter2"
) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        operation,
    )  # type: ignore[typeddict-item]


KMS = "User: hunter2 is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:hunter2 because"
OLDER_KMS = "The ciphertext refers to a customer master key that does not exist hunter2"
SSE_C = "The object was stored using a form of Server Side Encryption. The correct parameters must hunter2"
REGION = "correct AWS_REGION or AWS_ENDPOINT_URL"
BOTH = "allow s3:GetObject on its objects, and kms:Decrypt on their KMS key if they have one"


def denials() -> list[tuple[ClientError, str]]:
    """What AWS answers, with the operation and the words of its message, and what helps."""
    get = "GetObject"
    return [
        (refusal("AccessDenied", 403), "(AccessDenied): allow s3:ListBucket on the bucket"),
        (refusal("AccessDenied", 403, get), BOTH),
        (refusal("403", 403, "HeadObject"), BOTH),
        (refusal("AccessDenied", 403, get, KMS), "(AccessDenied): allow kms:Decrypt on the KMS key"),
        (refusal("AccessDenied", 403, get, OLDER_KMS), "(AccessDenied): allow kms:Decrypt on the KMS key"),
        (refusal("KMS.DisabledException", 400, get), "its KMS key cannot be used (KMS.DisabledException)"),
        (refusal("KMS.NotFoundException", 400, get), "its KMS key cannot be used"),
        (refusal("KMS.KMSInvalidStateException", 400, get), "its KMS key cannot be used"),
        (
            refusal("InvalidObjectState", 403, get),
            "archive storage class, such as S3 Glacier (InvalidObjectS",
        ),
        (refusal("InvalidRequest", 400, get, SSE_C), "customer-provided key (SSE-C)"),
        (refusal("400", 400, "HeadObject"), "customer-provided key (SSE-C)"),
        (refusal("AuthorizationHeaderMalformed"), REGION),
        (refusal("PermanentRedirect", 301), REGION),
        (refusal("301", 301, "HeadObject"), REGION),
        (refusal("IllegalLocationConstraintException"), REGION),
        (refusal("RequestTimeTooSkewed", 403), "the clock of the pod's node is wrong (RequestTimeTooSkewed)"),
        (refusal("AccountProblem", 403), "the AWS account may not use S3"),
        (refusal("UnrecognizedClientException", 403), "credentials are not valid"),
        (refusal("XAdminUserNotFound", 404), "credentials are not valid (XAdminUserNotFound)"),
        (refusal("InvalidRange", 416, get), "changed while it was being fetched"),
        (refusal("ThrottlingException", 400), "the store limits the requests"),
        (refusal("KMS.ThrottlingException", 400, get), "the store limits the requests"),
        (refusal("NotImplemented", 501), "correct AWS_ENDPOINT_URL"),
    ]


def test_only_what_may_be_the_region_advises_the_region() -> None:
    for error, says in denials():
        assert ("AWS_REGION" in explain_failure(error).fix) == (says == REGION), error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refusal("NoSuchBucket", 404), "a bucket that does not exist"),
        (refusal("AccessDenied", 403), "may not be read"),
        (refusal("403", 403, "HeadObject"), "may not be read"),
        (refusal("InvalidAccessKeyId", 403), "credentials are not valid (InvalidAccessKeyId)"),
        (refusal("SignatureDoesNotMatch", 403), "credentials are not valid"),
        (refusal("ExpiredToken"), "credentials are not valid"),
        (refusal("AccessDenied", 403, "AssumeRoleWithWebIdentity"), "role cannot be assumed (AccessDenied)"),
        (refusal("404", 404, "HeadObject"), "changed while"),
        (refusal("404", 404), "no S3 service at the endpoint (404): correct AWS_ENDPOINT_URL"),
        *denials(),
        (FileNotFoundError(errno.ENOENT, "hunter2", "hunter2"), "AWS_WEB_IDENTITY_TOKEN_FILE"),
        (refusal("SlowDown", 503), "the store limits the requests (SlowDown): wait"),
        (refusal("InternalError", 500), "S3 answers InternalError (HTTP 500): see the store's log"),
        (refusal("NeverSeen"), "S3 answers NeverSeen (HTTP 400): see what the code means in the store's doc"),
        (refusal("<html>hunter2"), "an unknown error"),
        (aws.NoCredentialsError(), "no AWS credentials"),
        (aws.PartialCredentialsError(provider="env", cred_var="hunter2"), "not complete"),
        (aws.CredentialRetrievalError(provider="x", error_msg="hunter2"), "not complete"),
        (aws.NoRegionError(), "AWS_REGION"),
        (aws.EndpointConnectionError(endpoint_url="http://hunter2"), "(EndpointConnectionError)"),
        (aws.ConnectTimeoutError(endpoint_url="http://hunter2"), "cannot be reached"),
        (aws.ReadTimeoutError(endpoint_url="http://hunter2"), "cannot be reached"),
        (aws.SSLError(endpoint_url="http://hunter2", error="x"), "AWS_CA_BUNDLE"),
        (aws.ParamValidationError(report="hunter2"), "no valid bucket"),
        (ValueError("Invalid endpoint: hunter2"), "AWS_ENDPOINT_URL is no URL"),
        (OSError(errno.ENOSPC, "hunter2"), "does not fit on the disk"),
        (OSError(errno.EDQUOT, "hunter2"), "does not fit on the disk"),
        (PermissionError(errno.EACCES, "hunter2"), "cannot be written"),
        (OSError(errno.EROFS, "hunter2"), "cannot be written"),
        (aws.FlexibleChecksumError(error_msg="hunter2"), "(FlexibleChecksumError)"),
    ],
)
def test_every_failure_is_one_sentence_without_secrets(error: Exception, says: str) -> None:
    told = explain_failure(error)
    assert says in f"{told.what}: {told.fix}"
    assert "hunter2" not in str(told)


def test_a_mistake_of_ours_is_no_failure_of_the_stores() -> None:
    with pytest.raises(ZeroDivisionError):
        explain_failure(ZeroDivisionError())


@pytest.mark.parametrize("endpoint", ["hunter2", "http://", "http://::1:9000", "http://fd00::5"])
def test_an_endpoint_that_is_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ArtifactsError, match="AWS_ENDPOINT_URL is no URL") as raised:
        Artifacts(URI, str(tmp_path)).fetch(nothing)
    assert "hunter2" not in str(raised.value)
    assert raised.value.fix == "give http(s)://host:port, and put an IPv6 address into brackets"


def test_an_endpoint_may_be_an_ipv6_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hunter2")
    with socket.socket(socket.AF_INET6) as nobody:
        nobody.bind(("::1", 0))  # and does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://[::1]:{nobody.getsockname()[1]}")
        with pytest.raises(ArtifactsError, match=r"the S3 endpoint cannot be reached \(EndpointConnection"):
            Artifacts(URI, str(tmp_path)).fetch(nothing)


def test_empty_variables_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CA_BUNDLE"):
        monkeypatch.setenv(name, "")
    S3Store()


def test_of_those_who_share_a_folder_one_fetches_and_the_others_find_it_done(tmp_path: Path) -> None:
    """A file lock of one thread holds off another's as it does another process's."""
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Bucket):
        def download(self, *of: Any) -> None:
            arrived.set()
            assert go_on.wait(10)
            super().download(*of)

    first, second = Slow(**{"my-model__a": b"1"}), Bucket(**{"my-model__a": b"1"})
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        go_on.set()

    with ThreadPoolExecutor(2) as pool:
        fetching = pool.submit(fetch, first, tmp_path)
        assert arrived.wait(10)
        waiting = pool.submit(Artifacts(URI, str(tmp_path), open_store=lambda: second).fetch, tell)
        fetching.result(10)
        waiting.result(10)
    assert told[0] == "model data: another worker fetches it"
    assert (first.fetched, second.fetched) == (["my-model/a"], [])
    assert content(tmp_path) == {"a": "1"}


def test_another_workers_fetch_is_waited_for_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(artifacts, "LOCK_POLL_SECONDS", 0.01)
    arrived, go_on = threading.Event(), threading.Event()

    class Hanging(Bucket):
        def download(self, *of: Any) -> None:
            arrived.set()
            assert go_on.wait(10)
            super().download(*of)

    told: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(fetch, Hanging(**{"my-model__a": b"1"}), tmp_path)
        assert arrived.wait(10)
        try:
            with pytest.raises(ArtifactsError, match="is being fetched by another worker, for 0 s now"):
                Artifacts(URI, str(tmp_path), open_store=Bucket).fetch(told.append)
        finally:
            go_on.set()
        fetching.result(10)
    assert set(told) == {"model data: another worker fetches it"}


async def test_a_model_is_told_by_its_own_field_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems: list[Problem] = []
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: asyncio.Event().wait())
    model = Artifacts(
        URI, str(tmp_path), field="model.uri", reason=Reason.MODEL_DOWNLOAD_FAILED, open_store=Bucket
    )
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.wait_until_fetched(problems.append, nothing), 2.0)
    assert [(each.reason, each.field) for each in problems] == [("ModelDownloadFailed", "model.uri")]
    assert problems[0].reason in CONDITION_REASONS[Condition.CONFIGURATION_RESOLVED]


def test_the_pause_doubles_to_a_minute() -> None:
    assert all(0.8 <= pause(1) <= 1.2 for _ in range(50))
    assert 3.2 <= pause(3) <= 4.8
    assert 48 <= pause(10_000) <= 72


async def test_it_tries_again_until_the_data_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket()
    problems: list[Problem] = []
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            bucket.contents["my-model/a"] = b"1"

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await Artifacts(URI, str(tmp_path), open_store=lambda: bucket).wait_until_fetched(
        problems.append, nothing
    )
    assert content(tmp_path) == {"a": "1"}
    assert len(problems) == len(waited) == 3
    assert (problems[0].reason, problems[0].source, problems[0].field, problems[0].message) == (
        "ArtifactsNotFetched", "Spec", "model.artifactsUri",
        "model.artifactsUri names a prefix that holds no object: upload the model's data, or correct it.",
    )  # fmt: skip


def test_objects_that_change_while_they_are_fetched_are_not_mixed(tmp_path: Path) -> None:
    bucket = Bucket(model__1=b"old1", model__2=b"old2")
    download = bucket.download

    def changing(*arguments: Any) -> None:
        download(*arguments)
        bucket.contents.update({"model/1": b"new1", "model/2": b"new2"})

    bucket.download = changing  # type: ignore[method-assign]
    with pytest.raises(ArtifactsError, match="changed while it was being fetched"):
        fetch(bucket, tmp_path, "s3://bucket/model/")
    assert content(tmp_path) == {}
    bucket.download = download  # type: ignore[method-assign]
    fetch(bucket, tmp_path, "s3://bucket/model/")
    assert content(tmp_path) == {"1": "new1", "2": "new2"}
