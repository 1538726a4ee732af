//! What guards of routes have counted, for the routes of the next configuration. A route with a name goes on with the
//! counters of that name; one without with those of routes without that match the same, wherever it stands among the
//! others. In both it is each limit by itself that goes on, and limits alike in order.

use std::sync::Arc;

use super::{BasicAuth, Guards, RateLimit};
use crate::{
    config::model,
    policy::{
        concurrency::InFlight,
        limit_key::LimitKey,
        rate::Rate,
        route::{HostPattern, PathPattern, RouteMatch},
    },
};

/// Under what a route's counters are found again, also by another process and another release.
pub fn key(route: &model::Route) -> String {
    // No name has a blank.
    if route.named { route.name.to_string() } else { format!("match {}", canonical(&route.matches)) }
}

/// The same text for the same match.
fn canonical(matches: &RouteMatch) -> String {
    let RouteMatch { hosts, path, methods, headers } = matches;
    let mut parts: Vec<String> = hosts
        .iter()
        .map(|host| match host {
            HostPattern::Exact(host) => format!("host={host}"),
            HostPattern::Wildcard(suffix) => format!("host=*{suffix}"),
        })
        .chain(methods.iter().map(|method| format!("method={method}")))
        .chain(headers.iter().map(|(name, value)| format!("header={name}:{value:?}")))
        .collect();
    parts.sort_unstable();
    let path = match path {
        PathPattern::Any => "path=/".to_owned(),
        PathPattern::Exact(path) => format!("path_exact={path}"),
        PathPattern::Prefix(path) => format!("path={path}/"),
    };
    parts.insert(0, path);
    parts.join(" ")
}

/// What is there to go on with under one key; what is taken is another's no more.
#[derive(Default)]
pub struct Carried {
    rates: Vec<Arc<RateLimit>>,
    concurrency: Vec<(LimitKey, Arc<InFlight>)>,
    basic: Vec<Arc<BasicAuth>>,
}

impl Carried {
    /// These are there too.
    pub fn add(&mut self, guards: &Guards) {
        self.rates.extend(guards.rate.iter().flat_map(|rate| rate.limits().iter().cloned()));
        self.concurrency.extend(guards.concurrency.iter().map(|limit| (limit.key.clone(), limit.table.clone())));
        self.basic.extend(guards.basic.iter().cloned());
    }

    /// Times of arrival mean nothing at another rate, so such a limit begins anew. Two alike have each their own.
    pub(super) fn rate(&mut self, key: &LimitKey, rate: Rate) -> Option<Arc<RateLimit>> {
        let at = self.rates.iter().position(|old| old.key == *key && old.table.rate() == rate)?;
        Some(self.rates.remove(at))
    }

    pub(super) fn in_flight(&mut self, key: &LimitKey) -> Option<Arc<InFlight>> {
        let at = self.concurrency.iter().position(|(old, _)| old == key)?;
        Some(self.concurrency.remove(at).1)
    }

    /// What was verified holds for the same file only: a password that was changed is asked for at once.
    pub(super) fn verified(&self, content: &model::Secret) -> Option<&Arc<BasicAuth>> {
        self.basic.iter().find(|before| before.content == *content)
    }
}
