"""How AWS is reached: clients by the ordinary credential chain, and its failures in our words.

Credentials come from where boto3 finds them (environment, profile, SSO, role); they are never read, kept or printed
here. An error's text is AWS's code and our sentence, never the request that was signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from catalogs.errors import InputError, MissingError, PlanError
from catalogs.names import resolve

EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
UNKNOWN_IDENTITY = ("InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure", "SignatureDoesNotMatch",
                    "InvalidSignatureException", "IncompleteSignature", "MissingAuthenticationToken")  # fmt: skip
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "UnauthorizedException", "OptInRequired")
THROTTLED = ("Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded", "SlowDown",
             "TooManyRequestsException", "LimitExceededException", "RequestThrottled", "MaxConfigLimitExceeded",
             "RequestThrottledException", "ProvisionedThroughputExceededException")  # fmt: skip
CREDENTIALS_REMEDY = "sign in the ordinary AWS way: `aws sso login`, AWS_PROFILE, a role, or environment variables"


@dataclass(frozen=True)
class Access:
    """Where and how AWS is asked."""

    profile: str | None = None
    endpoint_url: str | None = None  # one address for every service: a proxy, or a test's own server
    timeout_s: float = 20.0
    max_attempts: int = 5  # of each call, with boto3's standard backoff

    def client(self, service: str, region: str) -> Any:
        """A boto3 client.

        Raises:
            MissingError: the profile does not exist, or boto3 is not installed.
        """
        try:
            import boto3
            import botocore.session
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise MissingError("boto3 is not installed", remedy="pip install boto3") from None
        config = Config(
            retries={"mode": "standard", "max_attempts": self.max_attempts},
            connect_timeout=self.timeout_s,
            read_timeout=self.timeout_s,
            user_agent_extra="gpu-capacity-planner",
        )
        try:
            core = botocore.session.Session(profile=self.profile)
            core.register_component("data_loader", _loader())
            session: Any = boto3.Session(botocore_session=core)
            return session.client(service, region_name=region, endpoint_url=self.endpoint_url, config=config)
        except BotoCoreError as error:
            raise trouble(error, f"{service}:*") from None


@cache
def _loader() -> Any:
    """AWS's service descriptions, read once: parsing them is most of the cost of a client."""
    from botocore.loaders import create_loader

    return create_loader()


def check_regions(regions: Sequence[str]) -> list[str]:
    """The regions as AWS spells them.

    Raises:
        InputError: a region that AWS does not have; the message gives the nearest.
    """
    import boto3

    session: Any = boto3.Session()
    known = [r for p in session.get_available_partitions() for r in session.get_available_regions("ec2", p)]
    return [resolve(region, known, "AWS region", "--region") for region in regions]


class MalformedAnswerError(Exception):
    """AWS, or something in between, answered what its own model does not allow."""


class CallError(MissingError):
    """A failure of one call, with what kind it was."""

    kind = "other"


class CredentialsError(CallError):
    """Nobody is signed in, or no longer; every other call would fail the same way."""

    kind = "credentials"


class DeniedError(CallError):
    """The identity lacks a permission."""

    kind = "denied"


def trouble(error: Exception, action: str) -> PlanError:
    """An exception of boto3 in our words.

    Args:
        error: what boto3 raised.
        action: the IAM action that was tried, as a policy names it (``ec2:DescribeSpotPriceHistory``).
    """
    from botocore import exceptions as e

    if isinstance(error, PlanError):
        return error
    if isinstance(error, e.ClientError):
        return _refused(error, action)
    if isinstance(error, (e.NoCredentialsError, e.PartialCredentialsError, e.CredentialRetrievalError)):
        return CredentialsError("no AWS credentials", where=action, remedy=CREDENTIALS_REMEDY)
    if isinstance(error, (e.SSOError, e.TokenRetrievalError)):
        return CredentialsError("the AWS sign-in has expired", where=action, remedy="`aws sso login`, then again")
    if isinstance(error, e.ProfileNotFound):
        return CredentialsError(str(error), where="--profile", remedy="`aws configure list-profiles` lists them")
    if isinstance(error, (e.InvalidRegionError, e.NoRegionError)):
        return InputError(str(error), where="--region")
    if isinstance(error, (e.ReadTimeoutError, e.ConnectTimeoutError)):
        return _told("slow", "AWS did not answer in time", action, "try again, or raise --timeout-s")
    if isinstance(error, (e.HTTPClientError, e.ConnectionError)):  # refused, unreachable, closed, proxy, TLS
        return _told("offline", "AWS cannot be reached", action, "the catalogue's own prices stay in use")
    return _told("malformed", f"an answer that cannot be read ({type(error).__name__})", action, "try again later")


def _refused(error: Any, action: str) -> PlanError:
    code = str(error.response.get("Error", {}).get("Code", "unknown"))
    if code in EXPIRED:
        return CredentialsError(f"the AWS credentials have expired ({code})", where=action, remedy=CREDENTIALS_REMEDY)
    if code in UNKNOWN_IDENTITY:
        return CredentialsError(f"AWS does not accept the credentials ({code})", where=action,
                                remedy=CREDENTIALS_REMEDY)  # fmt: skip
    if code in DENIED:
        return DeniedError(f"AWS denies {action} ({code})", where=action,
                           remedy=f"allow {action} in the identity's policy (see docs/prices.md)")  # fmt: skip
    if code in THROTTLED:
        return _told("throttled", f"AWS throttled the call to its end ({code})", action, "try again in some minutes")
    return _told("refused", f"AWS refused the call ({code})", action, "")


def _told(kind: str, what: str, action: str, remedy: str) -> CallError:
    error = CallError(what, where=action, remedy=remedy)
    error.kind = kind
    return error
