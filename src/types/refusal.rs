//! Why a connection ended before anything was asked on it, in closed words: for the metrics, the process log and, where
//! HTTP can still be spoken, `Proxy-Status`.

/// Why a connection was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// The client's certificate has expired or is not valid yet.
    ClientCertExpired,
    /// The client showed no certificate where one must be.
    ClientCertMissing,
    /// The client's certificate was revoked.
    ClientCertRevoked,
    /// Nobody can say whether the client's certificate was revoked: the list is out of date, or is another authority's.
    ClientCertUnchecked,
    /// The client's certificate is of an unknown issuer, or not one for clients.
    ClientCertUntrusted,
    /// The listener has as many connections as it may.
    Limit,
    /// The client has as many connections as it may.
    PerIp,
    /// HTTP in plain text where TLS is spoken.
    PlainHttp,
    /// The PROXY header was not well-formed, or ended early.
    ProxyHeaderMalformed,
    /// There was no PROXY header where one must be.
    ProxyHeaderMissing,
    /// A PROXY header is asked for, and who connected is not one of those who may send it.
    ProxyHeaderRefused,
    /// The PROXY header was not there in time.
    ProxyHeaderTimeout,
    /// The client ended the handshake, with an alert or by going away.
    TlsAborted,
    /// The handshake failed for another cause.
    TlsFailed,
    /// What came is not TLS.
    TlsMalformed,
    /// No version, cipher suite, group, signature or protocol that both sides speak.
    TlsNothingInCommon,
    /// The handshake was not finished in time.
    TlsTimeout,
    /// There is no certificate for the name that was asked for (`strict_sni`).
    UnknownName,
}

impl Refusal {
    /// Every cause, in the order of [`Refusal::index`].
    pub const ALL: [Self; 18] = [
        Self::ClientCertExpired,
        Self::ClientCertMissing,
        Self::ClientCertRevoked,
        Self::ClientCertUnchecked,
        Self::ClientCertUntrusted,
        Self::Limit,
        Self::PerIp,
        Self::PlainHttp,
        Self::ProxyHeaderMalformed,
        Self::ProxyHeaderMissing,
        Self::ProxyHeaderRefused,
        Self::ProxyHeaderTimeout,
        Self::TlsAborted,
        Self::TlsFailed,
        Self::TlsMalformed,
        Self::TlsNothingInCommon,
        Self::TlsTimeout,
        Self::UnknownName,
    ];

    /// The word in logs and metrics: snake_case, stable.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientCertExpired => "client_cert_expired",
            Self::ClientCertMissing => "client_cert_missing",
            Self::ClientCertRevoked => "client_cert_revoked",
            Self::ClientCertUnchecked => "client_cert_unchecked",
            Self::ClientCertUntrusted => "client_cert_untrusted",
            Self::Limit => "limit",
            Self::PerIp => "per_ip",
            Self::PlainHttp => "plain_http",
            Self::ProxyHeaderMalformed => "proxy_header_malformed",
            Self::ProxyHeaderMissing => "proxy_header_missing",
            Self::ProxyHeaderRefused => "proxy_header_refused",
            Self::ProxyHeaderTimeout => "proxy_header_timeout",
            Self::TlsAborted => "tls_aborted",
            Self::TlsFailed => "tls_failed",
            Self::TlsMalformed => "tls_malformed",
            Self::TlsNothingInCommon => "tls_nothing_in_common",
            Self::TlsTimeout => "tls_timeout",
            Self::UnknownName => "unknown_name",
        }
    }

    /// The place in [`Refusal::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_are_distinct_and_plain_and_an_index_finds_its_own_entry() {
        let words: HashSet<_> = Refusal::ALL.iter().map(|refusal| refusal.as_str()).collect();
        assert_eq!(words.len(), Refusal::ALL.len());
        for word in words {
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{word}");
        }
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::ALL[refusal.index()], refusal);
        }
    }
}
