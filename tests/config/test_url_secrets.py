"""Secrets in URLs: found in every form that stores and databases use, and not seen where there are none."""

import pytest

from tests.config.samples import tree_of
from tests.search.samples import search_job
from vaegen_ray.config.loading import job_of
from vaegen_ray.config.url_secrets import without_url_secrets
from vaegen_ray.errors import JobError


@pytest.mark.parametrize(
    ("text", "blotted"),
    [
        ("s3://AKIAX:wJalr/K7MDENG@bucket/runs", "s3://***@bucket/runs"),
        ("https://ghp_secret123456@host/x", "https://***@host/x"),
        ("postgres://u:p/w@h/db", "postgres://***@h/db"),
        ("postgres://u:p@ss/w@h/db", "postgres://***@h/db"),
        ("http://me:1234@host/", "http://***@host/"),
        ("redis://:secret@host", "redis://***@host"),
        ("az://user:secret@container/x", "az://***@container/x"),
        (
            "https://a.blob.core.windows.net/c?sv=1&sig=SECRET%2B&x=1",
            "https://a.blob.core.windows.net/c?sv=1&sig=***&x=1",
        ),
        ("https://b/x?X-Amz-Signature=abc#part", "https://b/x?X-Amz-Signature=***#part"),
        ("https://b/x?api_key=abc&access_token=d", "https://b/x?api_key=***&access_token=***"),
        ("AccountName=a;AccountKey=b/c==;EndpointSuffix=d", "AccountName=a;AccountKey=***;EndpointSuffix=d"),
    ],
)
def test_secret_in_a_url_is_blotted_out_and_the_rest_stays(text: str, blotted: str) -> None:
    assert without_url_secrets(text) == blotted


@pytest.mark.parametrize(
    "text",
    [
        "/data/me@home/runs",
        "file:///data/a:b@c",
        "s3://bucket/me@work/runs",
        "s3://bucket/key=value/token=1",
        "az://container@account.dfs.core.windows.net/runs",
        "hf://datasets/me/images@main/train",
        "http://host:8265/me@work",
        "see http://host:8265, or write to me@work",
        "http://[::1]:5000/me@work",
        "sqlite:////data/me@home.db",
        "http://host/?monkey=1",
        '{"a":"http://host","b":"x:y@z"}',
    ],
)
def test_at_sign_that_is_no_secret_stays(text: str) -> None:
    assert without_url_secrets(text) == text


@pytest.mark.parametrize(
    "storage", ["s3://AKIAX:planted/secret@bucket/runs", "https://planted-secret@host/x", "s3://b/x?sig=planted-secret"]
)
def test_job_with_a_secret_in_a_url_is_refused_and_it_is_not_repeated(storage: str) -> None:
    with pytest.raises(JobError, match=r"job: storage: must hold no user, password or signature") as caught:
        job_of(tree_of("vae") | {"storage": storage}, "job")
    assert "planted" not in str(caught.value)


def test_secret_in_a_list_of_a_job_is_refused_by_its_place() -> None:
    with pytest.raises(JobError, match=r"warm_start\[1\]: must hold no user") as caught:
        search_job("runs", warm_start=["s3://b/other", "s3://me:planted@b/search"])
    assert "planted" not in str(caught.value)
