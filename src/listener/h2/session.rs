//! A stream as Pingora's proxy has it, for requests that are not for the lane: behaves as Pingora's own HTTP/2 session, which cannot be
//! made of what the h2 crate gives. Beside that, interim answers go to the client, and trailers of requests are judged.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use h2::{SendStream, server::SendResponse};
use http::{HeaderMap, Response, StatusCode, header};
use pingora_core::{
    Error, ErrorType, Result,
    protocols::{
        Digest,
        http::{
            HttpTask,
            custom::{CustomMessageWrite, server::Session},
            date::get_cached_date,
        },
        l4::socket::SocketAddr,
    },
};
use pingora_http::{RequestHeader, ResponseHeader};
use tokio::time::timeout;

use crate::proxy::{Outlet, Upload, stream_failed, tunnel};

/// As much of a request's body is kept for another attempt; as much as Pingora keeps.
const RETAINED: usize = 64 * 1024;

/// One request.
pub(super) struct StreamSession {
    request: RequestHeader,
    upload: Upload,
    respond: SendResponse<Bytes>,
    /// The answer, once it has begun.
    sending: Option<SendStream<Bytes>>,
    outlet: Outlet,
    /// The last head that was written.
    written: Option<Box<ResponseHeader>>,
    /// The answer's end has been given.
    ended: bool,
    /// The request asks for a WebSocket; the backend has switched to it.
    asks: bool,
    upgraded: bool,
    sent: usize,
    /// The beginning of the body; `None` where nobody asked for it to be kept.
    kept: Option<BytesMut>,
    truncated: bool,
    write_timeout: Option<Duration>,
    drain_timeout: Option<Duration>,
}

impl StreamSession {
    pub(super) fn new(request: RequestHeader, upload: Upload, respond: SendResponse<Bytes>) -> Self {
        let asks = request.headers.contains_key(header::UPGRADE);
        Self {
            request,
            outlet: upload.outlet(),
            upload,
            respond,
            sending: None,
            written: None,
            ended: false,
            asks,
            upgraded: false,
            sent: 0,
            kept: None,
            truncated: false,
            write_timeout: None,
            drain_timeout: None,
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        }
    }

    fn write_head(&mut self, mut head: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.ended || self.sending.is_some() {
            return Ok(());
        }
        if self.asks && head.status == StatusCode::SWITCHING_PROTOCOLS {
            // RFC 8441 §5.1.
            head.set_status(StatusCode::OK)?;
            tunnel::HANDSHAKE.iter().for_each(|name| _ = head.remove_header(name));
            self.upgraded = true;
        }
        let interim = head.status.is_informational();
        if !interim {
            head.insert_header(header::DATE, get_cached_date())?;
        }
        // What HTTP/2 has no place for (RFC 9113 §8.2.2).
        for name in ["transfer-encoding", "connection", "upgrade", "keep-alive", "proxy-connection"] {
            head.remove_header(name);
        }
        let response = Response::from_parts(head.as_owned_parts(), ());
        if interim {
            self.respond.send_informational(response).map_err(stream_failed)?;
        } else {
            self.sending = Some(self.respond.send_response(response, end).map_err(stream_failed)?);
            self.ended = end;
        }
        self.written = Some(head);
        Ok(())
    }

    /// Writes data, each part of it within the time for a write.
    async fn write_data(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let Some(sending) = &mut self.sending else {
            return Error::e_explain(ErrorType::H2Error, "a body before its head");
        };
        if data.is_empty() {
            sending.send_data(data, end).map_err(stream_failed)?;
            self.ended = end;
            return Ok(());
        }
        while !data.is_empty() {
            let room = poll_fn(|cx| self.outlet.poll_room(sending, data.len(), cx));
            let room = match self.write_timeout {
                None => room.await?,
                Some(patience) => timeout(patience, room)
                    .await
                    .map_err(|_| Error::explain(ErrorType::WriteTimedout, "writing to a stream").into_down())??,
            };
            let part = data.split_to(room.min(data.len()));
            self.sent += part.len();
            sending.send_data(part, end && data.is_empty()).map_err(stream_failed)?;
        }
        self.ended = end;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        // Where there is no head either, dropping it all resets the stream.
        if let Some(sending) = &mut self.sending {
            sending.send_data(Bytes::new(), true).map_err(stream_failed)?;
            self.ended = true;
        }
        Ok(())
    }

    fn trailers(&mut self, fields: HeaderMap) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let Some(sending) = &mut self.sending else {
            return Error::e_explain(ErrorType::H2Error, "trailers before their head");
        };
        sending.send_trailers(fields).map_err(stream_failed)?;
        self.ended = true;
        Ok(())
    }

    /// The next part of the body, which is not empty: an empty last one Pingora would write as a last chunk, and then another.
    async fn read(&mut self) -> Result<Option<Bytes>> {
        let mut data = poll_fn(|cx| self.upload.poll_data(cx)).await?;
        while data.as_ref().is_some_and(Bytes::is_empty) {
            data = poll_fn(|cx| self.upload.poll_data(cx)).await?;
        }
        if let Some(data) = &data {
            if let Some(kept) = &mut self.kept
                && !self.truncated
            {
                if kept.len() + data.len() <= RETAINED {
                    kept.extend_from_slice(data);
                } else {
                    (*kept, self.truncated) = (BytesMut::new(), true);
                }
            }
            self.upload.release(data.len());
        }
        Ok(data)
    }

    async fn drain(&mut self) -> Result<()> {
        while self.read().await?.is_some() {}
        Ok(())
    }

    fn is_empty(&self) -> bool {
        if self.asks {
            // What comes before the backend has switched is of the other protocol.
            return !self.upgraded;
        }
        let none = |length: &http::HeaderValue| length.as_bytes() == b"0";
        self.upload.received() == 0
            && (self.upload.is_done() || self.request.headers.get(header::CONTENT_LENGTH).is_some_and(none))
    }

    fn reset(&mut self, reason: h2::Reason) {
        if !self.ended {
            self.respond.send_reset(reason);
        }
    }
}

impl Drop for StreamSession {
    fn drop(&mut self) {
        self.upload.over(self.written.as_ref().map(|head| head.status), self.sent as u64);
    }
}

#[async_trait]
impl Session for StreamSession {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.read().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        if self.is_body_done() {
            return Ok(());
        }
        match self.drain_timeout {
            None => self.drain().await,
            Some(patience) => timeout(patience, self.drain())
                .await
                .unwrap_or_else(|_| Error::e_explain(ErrorType::ReadTimedout, "draining a stream")),
        }
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.write_head(head, end)
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, end: bool) -> Result<()> {
        self.write_head(Box::new(head.clone()), end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.write_data(data, end).await
    }

    async fn write_trailers(&mut self, fields: HeaderMap) -> Result<()> {
        self.trailers(fields)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut end = false;
        for task in tasks {
            end |= match task {
                HttpTask::Header(head, end) => {
                    self.write_head(head, end).map_err(Error::into_down)?;
                    end
                }
                HttpTask::Body(data, end) | HttpTask::UpgradedBody(data, end) => {
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        self.write_data(data, end).await.map_err(Error::into_down)?;
                    }
                    end
                }
                HttpTask::Trailer(fields) => {
                    if let Some(fields) = fields {
                        self.trailers(*fields).map_err(Error::into_down)?;
                    }
                    true
                }
                HttpTask::Done => true,
                HttpTask::Failed(error) => return Err(error),
            };
        }
        if end {
            self.end().map_err(Error::into_down)?;
        }
        Ok(end)
    }

    /// As over HTTP/2 with Pingora: deadlines of reading are kept elsewhere.
    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.drain_timeout = timeout;
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.drain_timeout
    }

    fn request_summary(&self) -> String {
        let uri = &self.request.uri;
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        let host = uri.authority().map_or("", |host| host.as_str());
        format!("{} {target}, Host: {host}", self.request.method)
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        self.reset(h2::Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        self.is_empty() || self.upload.is_done()
    }

    async fn finish(&mut self) -> Result<()> {
        self.end()
    }

    fn is_body_empty(&mut self) -> bool {
        self.is_empty()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && !self.is_body_done() {
            return self.read().await;
        }
        let reason = poll_fn(|cx| self.poll_reset(cx)).await.map_err(stream_failed)?;
        Err(Error::explain(ErrorType::H2Error, format!("the client reset its stream: {reason}")))
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        usize::try_from(self.upload.received()).unwrap_or(usize::MAX)
    }

    fn digest(&self) -> Option<&Digest> {
        None
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    /// For subrequests, of which there are none.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.kept.get_or_insert_default();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.truncated
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let kept = self.kept.as_ref().filter(|kept| !self.truncated && !kept.is_empty())?;
        Some(kept.clone().freeze())
    }

    fn is_upgrade_req(&self) -> bool {
        self.asks
    }

    fn was_upgraded(&self) -> bool {
        self.upgraded
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<Messages> {
        None
    }

    fn restore_custom_message_reader(&mut self, _: Messages) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}

/// Of a protocol that is not ours.
type Messages = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;
