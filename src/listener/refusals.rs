//! What is said of connections that are turned away before anything is asked on them: each is counted by its cause; of each
//! cause there is a line a second for each listener, as scanners go on all day.

use std::{fmt, io, net::IpAddr, time::Instant};

use rustls::{CertificateError, OtherError};

use super::{Endpoint, lines::Lines};
use crate::types::Refusal;

/// Of what is said beside the cause.
const LONGEST_DETAIL: usize = 200;

/// Those of one listener, whatever the worker.
#[derive(Debug, Default)]
pub(super) struct Refusals([Lines; Refusal::ALL.len()]);

impl Endpoint {
    /// Counts a connection of `client` (`None`: of a unix socket) that was turned away, and logs it where it is time to.
    pub(super) fn refused(&self, client: Option<IpAddr>, cause: Refusal, detail: Option<&dyn fmt::Display>) {
        self.metrics.refused(cause);
        let Some(lines) = self.place().refusals().0.get(cause.index()) else { return };
        let Some(skipped) = lines.take(Instant::now()) else { return };
        let (listener, cause) = (&self.model.address, cause.as_str());
        let client = client.map_or_else(|| "unix".to_owned(), |client| client.to_canonical().to_string());
        let detail = detail.map_or_else(String::new, |detail| format!(" ({})", plain(&detail.to_string())));
        let more = if skipped == 0 { String::new() } else { format!("; {skipped} more here since the last such line") };
        log::info!("{listener}: turned a connection of {client} away: {cause}{detail}{more}");
    }
}

/// On one line and not long, whatever a client had a part in.
fn plain(text: &str) -> String {
    let end = text.floor_char_boundary(LONGEST_DETAIL);
    text[..end].chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

/// No certificate for the name that was asked for, or for none.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.as_ref().map_or("no name was asked for".to_owned(), |name| format!("no certificate for {name}")))]
pub(super) struct UnknownName(pub(super) Option<String>);

/// What is said of a failed handshake. For some faults of certificates rustls has nothing but a name, in two brackets.
pub(super) fn told(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(fault)))) = cause else {
        return error.to_string();
    };
    match fault.to_string().as_str() {
        "CaUsedAsEndEntity" => "the certificate is an authority's, not a client's".to_owned(),
        "EndEntityUsedAsCa" => "the certificate was issued by one that is no authority's".to_owned(),
        "UnsupportedCertVersion" => "the certificate is not of X.509 version 3".to_owned(),
        other => format!("invalid certificate: {other}"),
    }
}

/// Why a handshake failed that was not too slow.
pub(super) fn of_handshake(error: &io::Error) -> Refusal {
    let Some(cause) = error.get_ref() else { return Refusal::TlsAborted };
    if cause.is::<UnknownName>() {
        return Refusal::UnknownName;
    }
    let Some(cause) = cause.downcast_ref::<rustls::Error>() else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => Refusal::TlsAborted,
            // A message that is longer than rustls takes; it has no error of its own for that.
            _ if cause.to_string() == "message buffer full" => Refusal::TlsMalformed,
            _ => Refusal::TlsFailed,
        };
    };
    match cause {
        rustls::Error::AlertReceived(_) => Refusal::TlsAborted,
        rustls::Error::InvalidCertificate(error) => of_certificate(error),
        rustls::Error::NoCertificatesPresented => Refusal::ClientCertMissing,
        rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => Refusal::TlsNothingInCommon,
        rustls::Error::DecryptError
        | rustls::Error::InappropriateHandshakeMessage { .. }
        | rustls::Error::InappropriateMessage { .. }
        | rustls::Error::InvalidMessage(_)
        | rustls::Error::PeerMisbehaved(_)
        | rustls::Error::PeerSentOversizedRecord => Refusal::TlsMalformed,
        _ => Refusal::TlsFailed,
    }
}

fn of_certificate(error: &CertificateError) -> Refusal {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Refusal::ClientCertExpired,
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. }
        | CertificateError::UnknownRevocationStatus => Refusal::ClientCertUnchecked,
        CertificateError::Revoked => Refusal::ClientCertRevoked,
        _ => Refusal::ClientCertUntrusted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_had_a_part_in_stays_on_one_line() {
        assert_eq!(plain("a\r\nb\u{1b}[0m"), "a??b?[0m");
        assert!(plain(&"ä".repeat(1000)).len() <= LONGEST_DETAIL);
    }

    #[test]
    fn faults_of_certificates_are_told_in_words() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Fault(&'static str);
        let told_of =
            |error| told(&io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error)));
        let other = |fault| told_of(CertificateError::Other(OtherError(std::sync::Arc::new(Fault(fault)))));
        assert_eq!(other("UnsupportedCertVersion"), "the certificate is not of X.509 version 3");
        assert_eq!(other("CaUsedAsEndEntity"), "the certificate is an authority's, not a client's");
        assert_eq!(other("PathLenConstraintViolated"), "invalid certificate: PathLenConstraintViolated");
        assert_eq!(told_of(CertificateError::UnknownIssuer), "invalid peer certificate: UnknownIssuer");
        assert_eq!(told(&io::ErrorKind::UnexpectedEof.into()), "unexpected end of file");
    }

    #[test]
    fn each_cause_of_a_failed_handshake_has_its_word() {
        let tls = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let certificate = |error| tls(rustls::Error::InvalidCertificate(error));
        for (error, cause) in [
            (io::ErrorKind::UnexpectedEof.into(), Refusal::TlsAborted),
            (io::Error::from_raw_os_error(libc::ECONNRESET), Refusal::TlsAborted),
            (io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"), Refusal::TlsAborted),
            (io::Error::new(io::ErrorKind::InvalidData, "message buffer full"), Refusal::TlsMalformed),
            (io::Error::other("the listener speaks no TLS any more"), Refusal::TlsFailed),
            (io::Error::other(UnknownName(None)), Refusal::UnknownName),
            (tls(rustls::Error::NoCertificatesPresented), Refusal::ClientCertMissing),
            (tls(rustls::PeerIncompatible::NoCipherSuitesInCommon.into()), Refusal::TlsNothingInCommon),
            (tls(rustls::InvalidMessage::InvalidContentType.into()), Refusal::TlsMalformed),
            (tls(rustls::Error::DecryptError), Refusal::TlsMalformed),
            (certificate(CertificateError::Expired), Refusal::ClientCertExpired),
            (certificate(CertificateError::NotValidYet), Refusal::ClientCertExpired),
            (certificate(CertificateError::Revoked), Refusal::ClientCertRevoked),
            (certificate(CertificateError::ExpiredRevocationList), Refusal::ClientCertUnchecked),
            (certificate(CertificateError::UnknownIssuer), Refusal::ClientCertUntrusted),
            (certificate(CertificateError::BadSignature), Refusal::ClientCertUntrusted),
            (tls(rustls::Error::General(String::new())), Refusal::TlsFailed),
        ] {
            assert_eq!(of_handshake(&error), cause, "{error:?}");
        }
    }
}
