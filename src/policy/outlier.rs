//! Passive ejection: what an attempt says of its backend, when failures in a row take it out, for how long, and how many
//! may be out at once. After Envoy's outlier detection, HAProxy's `observe layer7` and nginx's `max_fails`. Who counts and
//! who gives back is not decided here.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::types::{Percent, Reason};

/// No ejection lasts longer, but for a longer `base`: as Envoy's `max_ejection_time`.
pub const LONGEST: Duration = Duration::from_secs(300);

/// When a backend that fails is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectPolicy {
    /// Failures in a row that take a backend out; default 5, 1 or more.
    pub consecutive_failures: u32,
    /// How long the first ejection lasts; the second in a row lasts twice as long, and so on up to [`LONGEST`]. Each `base`
    /// that a backend stays in makes the next ejection one `base` shorter. Default 10 s, 100 ms or more.
    pub base: Duration,
    /// The most of an upstream's backends that may be out at once; default 50 %, 1 % or more. One may always be out, and
    /// one that does not fail itself is always left.
    pub max_percent: Percent,
}

impl EjectPolicy {
    /// Where the file names only some of it.
    pub const DEFAULT: Self = Self {
        consecutive_failures: 5,
        base: Duration::from_secs(10),
        max_percent: Percent::new(50).expect("50 is at most 100"),
    };

    /// Whether this failure is one to eject for. Where that may not be done, it is asked again after as many failures more.
    pub fn calls_for(&self, failures_in_a_row: u32) -> bool {
        failures_in_a_row > 0 && failures_in_a_row.is_multiple_of(self.consecutive_failures)
    }

    /// Whether so many failures in a row, with no success since, are enough to eject for.
    pub fn is_failing(&self, failures_in_a_row: u32) -> bool {
        failures_in_a_row >= self.consecutive_failures
    }

    /// How long the ejection of this number in a row lasts.
    pub fn term(&self, times: u32) -> Duration {
        self.base.saturating_mul(times).min(self.longest())
    }

    /// No ejection lasts longer.
    pub fn longest(&self) -> Duration {
        self.base.max(LONGEST)
    }

    /// How many of so many backends may be out at once; all of them are otherwise fit for traffic.
    pub fn most(&self, backends: usize) -> usize {
        self.max_percent.of(backends).max(1).min(backends.saturating_sub(1))
    }
}

/// What a backend has done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There was no answer, or no whole one.
    Failed(Reason),
    /// The answer says so itself.
    Status(u16),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => f.write_str(reason.as_str()),
            Self::Status(status) => write!(f, "status {status}"),
        }
    }
}

/// What an attempt says of its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has failed.
    Failure(Fault),
    /// Nothing.
    Nothing,
    /// It has done its part.
    Success,
}

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Of what.
    pub reason: Reason,
    /// The head of an answer had come.
    pub answered: bool,
    /// The request had its whole time for this attempt, and waited for the backend when that was over.
    pub waited: bool,
}

/// What a status says: 500, 502, 503 and 504 are failures, the statuses of Envoy's `consecutive_5xx` that a backend gives
/// when it is broken or overloaded. 501, 505 and the like are about the request.
pub fn by_status(status: u16) -> Option<Fault> {
    matches!(status, 500 | 502 | 503 | 504).then_some(Fault::Status(status))
}

/// What a failed attempt says. Whatever a client has caused is nothing, or a success where the backend had answered; a
/// stale pooled connection is not to be asked about.
pub fn by_failure(failed: Failed) -> Verdict {
    match failed.reason {
        Reason::BadResponse
        | Reason::ConnectFailed
        | Reason::ConnectRefused
        | Reason::ConnectTimeout
        | Reason::FirstByteTimeout
        | Reason::ReadTimeout
        | Reason::ResetBeforeHeaders
        | Reason::ResponseTruncated
        | Reason::TlsExpired
        | Reason::TlsFailed
        | Reason::TlsHandshakeTimeout
        | Reason::TlsUntrusted
        | Reason::TlsWrongName
        | Reason::WriteTimeout => Verdict::Failure(Fault::Failed(failed.reason)),
        Reason::TotalTimeout if failed.waited => Verdict::Failure(Fault::Failed(failed.reason)),
        Reason::AmbiguousFraming
        | Reason::AmbiguousPath
        | Reason::AuthUnavailable
        | Reason::BadRequest
        | Reason::BodyTooLarge
        | Reason::ClientAborted
        | Reason::ClientTimeout
        | Reason::Denied
        | Reason::DnsFailure
        | Reason::HeaderTimeout
        | Reason::HeaderTooLarge
        | Reason::HttpsRedirect
        | Reason::Internal
        | Reason::MethodNotAllowed
        | Reason::ProtocolUnknown
        | Reason::PlainHttp
        | Reason::NoBackend
        | Reason::NoRoute
        | Reason::Ok
        | Reason::RateLimited
        | Reason::Redirect
        | Reason::Respond
        | Reason::TooManyConcurrent
        | Reason::TooSlow
        | Reason::TotalTimeout
        | Reason::Unauthorized
        | Reason::UpgradeFailed
        | Reason::UriTooLong => {
            if failed.answered {
                Verdict::Success
            } else {
                Verdict::Nothing
            }
        }
    }
}

/// Whether a backend is out, and how often in a row it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// It gets traffic, for all that is known here.
    In {
        /// Ejections in a row, as of `since`.
        times: u32,
        /// When it came back; `None` where it never was out.
        since: Option<Instant>,
    },
    /// It gets none.
    Out {
        /// Ejections in a row, this one included.
        times: u32,
        /// When it comes back.
        until: Instant,
    },
}

impl Default for Record {
    fn default() -> Self {
        Self::In { times: 0, since: None }
    }
}

impl Record {
    /// Takes the backend out. Returns for how long; one that is out stays so.
    pub fn eject(&mut self, policy: &EjectPolicy, now: Instant) -> Duration {
        if let Self::Out { until, .. } = self {
            return until.saturating_duration_since(now);
        }
        let times = self.times(policy, now).saturating_add(1);
        let term = policy.term(times);
        *self = Self::Out { times, until: now + term };
        term
    }

    /// Whether its time out is over.
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self, Self::Out { until, .. } if *until <= now)
    }

    /// How long it has been out; `None` where it is not.
    pub fn out_for(&self, policy: &EjectPolicy, now: Instant) -> Option<Duration> {
        match self {
            Self::In { .. } => None,
            Self::Out { times, until } => {
                Some(policy.term(*times).saturating_sub(until.saturating_duration_since(now)))
            }
        }
    }

    /// Lets it in again, however long it was out.
    pub fn give_back(&mut self, now: Instant) {
        if let Self::Out { times, .. } = *self {
            *self = Self::In { times, since: Some(now) };
        }
    }

    /// Ejections in a row: one less for each `base` since it came back.
    pub fn times(&self, policy: &EjectPolicy, now: Instant) -> u32 {
        match *self {
            Self::In { since: None, times } | Self::Out { times, .. } => times,
            Self::In { since: Some(since), times } => {
                let well = now.saturating_duration_since(since).as_millis() / policy.base.as_millis().max(1);
                times.saturating_sub(u32::try_from(well).unwrap_or(u32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(base_millis: u64, percent: u8) -> EjectPolicy {
        let max_percent = Percent::new(percent).expect("a percentage");
        EjectPolicy { consecutive_failures: 3, base: Duration::from_millis(base_millis), max_percent }
    }

    fn failed(reason: Reason) -> Failed {
        Failed { reason, answered: false, waited: false }
    }

    #[test]
    fn what_the_client_caused_is_no_failure_of_the_backend() {
        for reason in [Reason::ClientAborted, Reason::ClientTimeout, Reason::BodyTooLarge, Reason::TooSlow] {
            assert_eq!(by_failure(failed(reason)), Verdict::Nothing, "{reason:?}");
            let answered = Failed { answered: true, ..failed(reason) };
            assert_eq!(by_failure(answered), Verdict::Success, "{reason:?}");
        }
    }

    #[test]
    fn what_the_backend_did_is_a_failure_before_and_within_its_answer() {
        for reason in [Reason::ConnectRefused, Reason::TlsExpired, Reason::FirstByteTimeout, Reason::ResponseTruncated]
        {
            for answered in [false, true] {
                let verdict = by_failure(Failed { answered, ..failed(reason) });
                assert_eq!(verdict, Verdict::Failure(Fault::Failed(reason)));
            }
        }
    }

    #[test]
    fn a_backend_is_blamed_for_the_total_time_only_if_it_had_all_of_it() {
        assert_eq!(by_failure(failed(Reason::TotalTimeout)), Verdict::Nothing);
        let waited = Failed { waited: true, ..failed(Reason::TotalTimeout) };
        assert_eq!(by_failure(waited), Verdict::Failure(Fault::Failed(Reason::TotalTimeout)));
    }

    #[test]
    fn statuses_of_a_broken_backend_are_failures_and_those_about_the_request_are_not() {
        let failures: Vec<u16> = (100..600).filter(|status| by_status(*status).is_some()).collect();
        assert_eq!(failures, [500, 502, 503, 504]);
    }

    #[test]
    fn one_may_be_out_and_one_is_left_whatever_the_percentage() {
        let most = |percent, backends| policy(1000, percent).most(backends);
        assert_eq!([most(50, 0), most(50, 1), most(50, 2), most(50, 3), most(50, 4)], [0, 0, 1, 1, 2]);
        assert_eq!([most(1, 1), most(1, 2), most(1, 100), most(1, 1000)], [0, 1, 1, 10]);
        assert_eq!([most(100, 1), most(100, 2), most(100, 10), most(29, 100)], [0, 1, 9, 29]);
    }

    #[test]
    fn ejections_grow_by_base_up_to_the_longest() {
        let term = |base: u64, times| policy(base, 50).term(times).as_secs();
        assert_eq!([term(10_000, 1), term(10_000, 2), term(10_000, 30), term(10_000, 31)], [10, 20, 300, 300]);
        assert_eq!([term(600_000, 1), term(600_000, 2), term(600_000, u32::MAX)], [600; 3]);
    }

    #[test]
    fn a_backend_that_stays_in_is_forgiven_step_by_step() {
        let (policy, start) = (policy(1000, 50), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let mut record = Record::default();
        let mut now = 0;
        for times in 1..=3 {
            assert_eq!(record.eject(&policy, at(now)).as_secs(), times);
            now += times * 1000;
            assert!(!record.is_due(at(now - 1)) && record.is_due(at(now)));
            record.give_back(at(now));
            now += 999;
        }
        now -= 999;
        assert_eq!(
            [0, 999, 1000, 2500, 3000, 60_000].map(|ms| record.times(&policy, at(now + ms))),
            [3, 3, 2, 1, 0, 0]
        );
        assert_eq!(record.eject(&policy, at(now + 2500)).as_secs(), 2);
        assert_eq!(record.eject(&policy, at(now + 3500)).as_secs(), 1, "one that is out is not ejected again");
    }

    proptest! {
        #[test]
        fn a_term_is_within_its_bounds(base in 100u64..10_000_000, pauses in prop::collection::vec(0u64..1_000_000, 1..40)) {
            let policy = policy(base, 50);
            let (mut record, mut now) = (Record::default(), Instant::now());
            let mut before = 0;
            for pause in pauses {
                now += Duration::from_millis(pause);
                let term = record.eject(&policy, now);
                let times = record.times(&policy, now);
                prop_assert!(policy.base <= term && term <= policy.longest());
                prop_assert!(1 <= times && times <= before + 1);
                prop_assert_eq!(u64::from(times), u64::from(before).saturating_sub(if before == 0 { 0 } else { pause / base }) + 1);
                now += term;
                prop_assert!(record.is_due(now));
                record.give_back(now);
                before = times;
            }
        }

        #[test]
        fn nobody_is_the_last_to_go(backends in 0usize..2000, percent in 1u8..=100) {
            let most = policy(1000, percent).most(backends);
            prop_assert!(backends == 0 || most < backends);
            prop_assert!(backends < 2 || most >= 1);
            prop_assert!(most <= (backends * usize::from(percent) / 100).max(1));
        }
    }
}
