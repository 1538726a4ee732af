//! The client's side of a request, whoever moves its bytes: what the phases ask of it.

use http::{HeaderMap, StatusCode, Version};
use pingora_proxy::Session;

use super::edit::Client;
use crate::policy::fields::Fields;

/// A client and its request.
pub(super) trait Downstream {
    /// Its fields, in whatever form.
    type Fields: Fields;

    /// The head of the request.
    fn request(&self) -> Client<'_, Self::Fields>;

    /// Path and query, as they are logged.
    fn target(&self) -> &str;

    /// Whether the request has a body, if perhaps an empty one.
    fn has_body(&mut self) -> bool;

    /// Whether all of the request has been read.
    fn is_body_done(&mut self) -> bool;

    /// Whether the request asks for an upgrade.
    fn is_upgrade(&self) -> bool;

    /// Bytes of the request's body that were read.
    fn received(&self) -> u64;

    /// Bytes of the answer's body that were written.
    fn sent(&self) -> u64;

    /// The status of the last head that was written, interim ones included.
    fn answered(&self) -> Option<StatusCode>;

    /// Whether what was read of the body is still at hand. `given`: something of it, if only its end, went towards a backend.
    fn can_repeat(&self, given: bool) -> bool;

    /// The connection ends after this request.
    fn no_next_request(&mut self);

    /// The protocol's version.
    fn version(&self) -> Version {
        self.request().version
    }

    /// Whether the answer itself has begun.
    fn is_answered(&self) -> bool {
        self.answered().is_some_and(|status| !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS)
    }
}

impl Downstream for Session {
    type Fields = HeaderMap;

    fn request(&self) -> Client<'_, HeaderMap> {
        Client::of(self.req_header())
    }

    fn target(&self) -> &str {
        self.req_header().uri.path_and_query().map_or("/", |target| target.as_str())
    }

    fn has_body(&mut self) -> bool {
        !self.as_mut().is_body_empty()
    }

    fn is_body_done(&mut self) -> bool {
        self.as_mut().is_body_done()
    }

    fn is_upgrade(&self) -> bool {
        self.is_upgrade_req()
    }

    fn received(&self) -> u64 {
        self.body_bytes_read() as u64
    }

    fn sent(&self) -> u64 {
        self.body_bytes_sent() as u64
    }

    fn answered(&self) -> Option<StatusCode> {
        self.response_written().map(|answer| answer.status)
    }

    fn can_repeat(&self, given: bool) -> bool {
        // Of a body that was only its own end Pingora keeps nothing, and so would never send the end again.
        let lost = given && self.as_ref().get_retry_buffer().is_none();
        !self.as_ref().retry_buffer_truncated() && !lost
    }

    fn no_next_request(&mut self) {
        self.set_keepalive(None);
    }

    fn version(&self) -> Version {
        self.req_header().version
    }
}
