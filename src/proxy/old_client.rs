//! HTTP/1.0 knows no chunks, but an answer of an HTTP/2 backend without a length gets them from Pingora, after all of our filters but
//! this one. Only requests of such clients have it.

use std::any::Any;

use async_trait::async_trait;
use http::header;
use pingora_core::{
    Result,
    modules::http::{HttpModule, HttpModuleBuilder, HttpModuleCtx, HttpModules, Module},
};
use pingora_http::ResponseHeader;

/// Takes the coding out of an answer, whose body then ends with the connection (RFC 9112 §6.1, §6.3).
struct Unchunked;

/// What a request of HTTP/1.0 has for its answer.
pub(super) fn modules() -> HttpModuleCtx {
    let mut modules = HttpModules::new();
    modules.add_module(Box::new(Unchunked));
    modules.build_ctx()
}

impl HttpModuleBuilder for Unchunked {
    fn init(&self) -> Module {
        Box::new(Self)
    }
}

#[async_trait]
impl HttpModule for Unchunked {
    async fn response_header_filter(&mut self, answer: &mut ResponseHeader, _: bool) -> Result<()> {
        answer.remove_header(&header::TRANSFER_ENCODING);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
