//! How a request ended, in closed words: for the access log, the metrics and `Proxy-Status` (RFC 9209). Which status
//! an answer gets is not decided here.

/// Builds the enum, its words and its RFC 9209 error types from one table, so that none can be forgotten.
macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $word:literal $error:expr;)*) => {
        /// How a request ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of [`Reason::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in logs and metrics: snake_case, stable.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The `error` parameter of `Proxy-Status` (RFC 9209 §2.3); `None` where nothing failed.
            pub const fn proxy_status_error(self) -> Option<&'static str> {
                match self {
                    $(Self::$variant => $error,)*
                }
            }
        }
    };
}

reasons! {
    /// `Content-Length` with `Transfer-Encoding`, or several that differ.
    AmbiguousFraming "ambiguous_framing" Some("http_request_error");
    /// The path (or host) could be understood in more than one way by who decides and who serves.
    AmbiguousPath "ambiguous_path" Some("http_request_error");
    /// Nobody could say whether the client may: the service or the queue for passwords did not answer.
    AuthUnavailable "auth_unavailable" Some("proxy_internal_error");
    /// A request that is not HTTP, or not one rrlb takes.
    BadRequest "bad_request" Some("http_request_error");
    /// The backend's answer was not HTTP.
    BadResponse "bad_response" Some("http_protocol_error");
    /// The request's body is larger than allowed.
    BodyTooLarge "body_too_large" Some("http_request_error");
    /// The client went away before the answer was finished.
    ClientAborted "client_aborted" None;
    /// The client's body did not arrive in time.
    ClientTimeout "client_timeout" Some("http_request_error");
    /// No connection to the backend, for another cause than those named below.
    ConnectFailed "connect_failed" Some("destination_unavailable");
    /// The backend refused the connection.
    ConnectRefused "connect_refused" Some("connection_refused");
    /// The connection to the backend was not made in time.
    ConnectTimeout "connect_timeout" Some("connection_timeout");
    /// The client's address is not allowed.
    Denied "denied" Some("http_request_denied");
    /// The backend's host name has no address yet.
    DnsFailure "dns_failure" Some("dns_error");
    /// The answer's first byte did not come in time.
    FirstByteTimeout "first_byte_timeout" Some("http_response_timeout");
    /// The request's head did not arrive in time.
    HeaderTimeout "header_timeout" Some("http_request_error");
    /// The request's head is larger than allowed.
    HeaderTooLarge "header_too_large" Some("http_request_error");
    /// Sent to `https://` by the listener.
    HttpsRedirect "https_redirect" None;
    /// A fault of rrlb itself.
    Internal "internal" Some("proxy_internal_error");
    /// A method rrlb does not serve (CONNECT).
    MethodNotAllowed "method_not_allowed" Some("http_request_denied");
    /// No backend of the upstream may be used.
    NoBackend "no_backend" Some("destination_unavailable");
    /// No route matches.
    NoRoute "no_route" Some("destination_not_found");
    /// Passed on and answered.
    Ok "ok" None;
    /// HTTP in plain text where the listener speaks TLS.
    PlainHttp "plain_http" Some("http_request_error");
    /// An extended CONNECT (RFC 8441) for another protocol than WebSocket.
    ProtocolUnknown "protocol_unknown" Some("http_request_error");
    /// Requests came more often than a route's `rate_limit`.
    RateLimited "rate_limited" Some("http_request_denied");
    /// The backend was silent for too long within its answer, or both sides of an upgraded connection were.
    ReadTimeout "read_timeout" Some("connection_read_timeout");
    /// Answered by a route's `redirect`.
    Redirect "redirect" None;
    /// The backend closed the connection before any byte of its answer.
    ResetBeforeHeaders "reset_before_headers" Some("connection_terminated");
    /// Answered by a route's `respond`.
    Respond "respond" None;
    /// The backend's answer ended before its end.
    ResponseTruncated "response_truncated" Some("http_response_incomplete");
    /// The backend's certificate has expired or is not valid yet.
    TlsExpired "tls_expired" Some("tls_certificate_error");
    /// The TLS handshake with the backend failed for another cause.
    TlsFailed "tls_failed" Some("tls_protocol_error");
    /// The TLS handshake with the backend was not finished in time.
    TlsHandshakeTimeout "tls_handshake_timeout" Some("connection_timeout");
    /// The backend's certificate is self-signed or of an unknown issuer.
    TlsUntrusted "tls_untrusted" Some("tls_certificate_error");
    /// The backend's certificate is for another name.
    TlsWrongName "tls_wrong_name" Some("tls_certificate_error");
    /// More requests in flight than a route's `concurrency`.
    TooManyConcurrent "too_many_concurrent" Some("http_request_denied");
    /// The client took its answer more slowly than allowed.
    TooSlow "too_slow" None;
    /// The request as a whole took longer than `total`.
    TotalTimeout "total_timeout" Some("http_response_timeout");
    /// The client has not shown who it is, or may not.
    Unauthorized "unauthorized" Some("http_request_denied");
    /// The backend did not take the upgrade it was asked for.
    UpgradeFailed "upgrade_failed" Some("http_upgrade_failed");
    /// The request's target is longer than allowed.
    UriTooLong "uri_too_long" Some("http_request_error");
    /// The backend did not take the request's bytes in time.
    WriteTimeout "write_timeout" Some("connection_write_timeout");
}

impl Reason {
    /// The place in [`Reason::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether the client did not get what it asked for. Answers by the operator's own routes are no failures.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::HttpsRedirect | Self::Ok | Self::Redirect | Self::Respond)
    }
}

/// How one attempt at one backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AttemptFailure {
    /// No connection: refused, unreachable, no address, or the TLS handshake failed. Nothing of the request was sent.
    Connect,
    /// As `Connect`, because the deadline passed.
    ConnectTimeout,
    /// The request was sent and no byte of the answer came in time.
    FirstByteTimeout,
    /// Anything else, among it everything after the answer's first byte.
    Other,
    /// A fresh connection broke before any byte of the answer.
    ResetBeforeHeaders,
    /// A reused connection broke before any byte of the answer: most often the backend had closed it meanwhile.
    StaleConnection,
}

impl AttemptFailure {
    /// Every kind, in the order of [`AttemptFailure::index`].
    pub const ALL: [Self; 6] = [
        Self::Connect,
        Self::ConnectTimeout,
        Self::FirstByteTimeout,
        Self::Other,
        Self::ResetBeforeHeaders,
        Self::StaleConnection,
    ];

    /// The word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::Other => "other",
            Self::ResetBeforeHeaders => "reset_before_headers",
            Self::StaleConnection => "stale_connection",
        }
    }

    /// The place in [`AttemptFailure::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_distinct_and_plain() {
        let words: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for word in words {
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{word}");
        }
    }

    #[test]
    fn an_index_finds_its_own_entry() {
        for reason in Reason::ALL {
            assert_eq!(Reason::ALL[reason.index()], *reason);
        }
        for failure in AttemptFailure::ALL {
            assert_eq!(AttemptFailure::ALL[failure.index()], failure);
        }
    }

    #[test]
    fn what_is_no_failure_has_no_proxy_status_error() {
        for reason in Reason::ALL {
            assert!(reason.is_failure() || reason.proxy_status_error().is_none(), "{reason:?}");
        }
    }
}
