//! Routes that match, and limits that count, by fields which are not simply the client's to say: warnings where nobody in the
//! whole file can say them, so that the one never matches and the other counts everybody as one.

use http::HeaderName;

use super::{
    decode::{Decoder, Item},
    model::{Listener, Route},
};
use crate::policy::{
    forwarded::{is_client_cert_field, is_forwarding_field},
    limit_key::LimitKey,
};

/// `trusts`: there are `trusted_proxies`.
pub(super) fn warn(d: &mut Decoder<'_>, routes: &[(Item<'_>, Route)], listeners: Option<&[Listener]>, trusts: bool) {
    let asks = |listener: &Listener| listener.tls.as_ref().is_some_and(|tls| tls.client_auth.is_some());
    let nobody_asks = listeners.is_some_and(|listeners| !listeners.iter().any(asks));
    for (item, route) in routes {
        let mut say = |name: &HeaderName, message: &str, help: &str| {
            d.warn_at(item.node.head(), &item.path, "never-said", format!("`{name}` {message}"), help);
        };
        for (name, _) in &route.matches.headers {
            if nobody_asks && is_client_cert_field(name) {
                let message = "is said by no listener, so this route never matches";
                say(name, message, "give a TLS listener `client_auth`");
            } else if !trusts && is_forwarding_field(name) {
                let message = "is believed of nobody, so this route never matches";
                say(name, message, "name the proxies that say it in `trusted_proxies`");
            }
        }
        let guards = &route.guards;
        let keys = guards.rate_limits.iter().map(|limit| &limit.key);
        for key in keys.chain(guards.concurrency.as_ref().map(|limit| &limit.key)) {
            if let LimitKey::Header(name) = key
                && nobody_asks
                && is_client_cert_field(name)
            {
                let message = "is said by no listener, so this limit counts all requests as one";
                say(name, message, "give a TLS listener `client_auth`, or write `key: client_ip`");
            }
        }
    }
}
