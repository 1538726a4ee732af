//! Whether a failed attempt may be made again, and where. The budget, and which backends are left, are not decided here.

use http::Method;

use crate::types::{AttemptFailure, Percent};

/// When and how often another backend is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; default 2, 1 to 10.
    pub attempts: u32,
    /// After a connect failure or timeout: default true.
    pub on_connect: bool,
    /// After a connection that broke before any byte of the answer, if the request may be repeated; default true.
    pub on_reset_before_headers: bool,
    /// Retries as a share of the last 10 s' requests, but always 10 a second; default 20 %. An attempt that came to no
    /// connection is not counted.
    pub budget: Percent,
}

/// A failed attempt, and what is known of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How it failed.
    pub kind: AttemptFailure,
    /// Attempts made so far, this one included: 1 or more.
    pub attempts: u32,
    /// Whether repeating the request has the effect of making it once; see [`is_idempotent`].
    pub idempotent: bool,
    /// Whether any byte of the request, in this attempt, may have been seen by the origin.
    pub maybe_seen: bool,
    /// Whether all of the body read from the client so far is still at hand.
    pub replayable: bool,
    /// Whether any byte of an answer went to the client.
    pub response_started: bool,
}

/// What is done after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The client gets the failure.
    GiveUp,
    /// Another backend, never one tried before.
    OtherBackend,
    /// The same backend (or another) on a connection made for it: the reused one was stale.
    FreshConnection,
}

/// Decides by RFC 9110 §9.2.2: what may have been seen is repeated only if that cannot change its effect.
pub fn may_retry(policy: &RetryPolicy, failure: &Failure) -> Decision {
    if failure.attempts >= policy.attempts || failure.response_started || !failure.replayable {
        return Decision::GiveUp;
    }
    let repeatable = !failure.maybe_seen || failure.idempotent;
    match failure.kind {
        AttemptFailure::Connect | AttemptFailure::ConnectTimeout if policy.on_connect && repeatable => {
            Decision::OtherBackend
        }
        AttemptFailure::ResetBeforeHeaders if policy.on_reset_before_headers && repeatable => Decision::OtherBackend,
        // Nothing sent on a stale connection is no failure of the backend: `on` has no say in it.
        AttemptFailure::StaleConnection if !failure.maybe_seen => Decision::FreshConnection,
        AttemptFailure::StaleConnection if policy.on_reset_before_headers && repeatable => Decision::FreshConnection,
        AttemptFailure::Connect
        | AttemptFailure::ConnectTimeout
        | AttemptFailure::FirstByteTimeout
        | AttemptFailure::Other
        | AttemptFailure::ResetBeforeHeaders
        | AttemptFailure::StaleConnection => Decision::GiveUp,
    }
}

/// Whether a method is idempotent (RFC 9110 §9.2.2). Unknown methods are not.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::DELETE | Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::TRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POST: Failure = Failure {
        kind: AttemptFailure::Connect,
        attempts: 1,
        idempotent: false,
        maybe_seen: false,
        replayable: true,
        response_started: false,
    };

    fn policy() -> RetryPolicy {
        let budget = Percent::new(20).expect("in range");
        RetryPolicy { attempts: 3, on_connect: true, on_reset_before_headers: true, budget }
    }

    fn decide(failure: Failure) -> Decision {
        may_retry(&policy(), &failure)
    }

    #[test]
    fn a_connect_failure_goes_to_another_backend_for_any_method() {
        assert_eq!(decide(POST), Decision::OtherBackend);
        assert_eq!(decide(Failure { kind: AttemptFailure::ConnectTimeout, ..POST }), Decision::OtherBackend);
        let off = RetryPolicy { on_connect: false, ..policy() };
        assert_eq!(may_retry(&off, &POST), Decision::GiveUp);
    }

    #[test]
    fn what_may_have_been_seen_is_repeated_only_if_idempotent() {
        for kind in [AttemptFailure::ResetBeforeHeaders, AttemptFailure::StaleConnection] {
            let seen = Failure { kind, maybe_seen: true, ..POST };
            assert_eq!(decide(seen), Decision::GiveUp);
            assert_ne!(decide(Failure { idempotent: true, ..seen }), Decision::GiveUp);
            assert_eq!(decide(Failure { idempotent: true, replayable: false, ..seen }), Decision::GiveUp);
        }
    }

    #[test]
    fn a_stale_connection_with_nothing_written_is_replaced_also_for_post() {
        let stale = Failure { kind: AttemptFailure::StaleConnection, ..POST };
        assert_eq!(decide(stale), Decision::FreshConnection);
        let off = RetryPolicy { on_connect: false, on_reset_before_headers: false, ..policy() };
        assert_eq!(may_retry(&off, &stale), Decision::FreshConnection);
        assert_eq!(may_retry(&off, &Failure { maybe_seen: true, idempotent: true, ..stale }), Decision::GiveUp);
    }

    #[test]
    fn nothing_is_retried_beyond_attempts_or_after_a_byte_of_the_answer() {
        for kind in AttemptFailure::ALL {
            let failure = Failure { kind, idempotent: true, ..POST };
            assert_eq!(decide(Failure { attempts: 3, ..failure }), Decision::GiveUp);
            assert_eq!(decide(Failure { response_started: true, ..failure }), Decision::GiveUp);
        }
        for kind in [AttemptFailure::FirstByteTimeout, AttemptFailure::Other] {
            assert_eq!(decide(Failure { kind, idempotent: true, ..POST }), Decision::GiveUp);
        }
    }

    #[test]
    fn idempotence_is_as_rfc_9110_says() {
        assert!(is_idempotent(&Method::PUT) && is_idempotent(&Method::GET));
        assert!(!is_idempotent(&Method::POST) && !is_idempotent(&Method::PATCH));
        assert!(!is_idempotent(&Method::from_bytes(b"PURGE").expect("a token")));
    }
}
