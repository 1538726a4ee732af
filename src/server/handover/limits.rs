//! What rate limits have counted, for a successor: the seed of the keys' numbers and, of each limit, the keys that have
//! used something of their burst with the time until it is whole again. A limit is the same under the same key of
//! its route (the name, else the match), key and rate. Bounded: of a limit the busiest keys, and of all limits as many as fit, in equal shares, so that a flood of
//! keys at one limit crowds out no other. Concurrency is not here: what is in flight stays with the process that has it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    policy::{
        limit_key::{LimitKey, Seed},
        rate::{Live, Rate},
    },
    runtime::{
        guards::RateLimit,
        snapshot::{Route, Snapshot},
    },
};

/// Keys of one limit.
const MOST_KEYS: usize = 50_000;
/// Keys of all limits: 16 bytes each, 4.3 MB as text.
const MOST_IN_ALL: usize = 200_000;

/// What rate limits have counted.
#[derive(Deserialize, Serialize)]
pub(super) struct HandedLimits {
    seed: [u8; 16],
    /// By the key of the route.
    #[serde(default)]
    routes: BTreeMap<String, Vec<HandedLimit>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct HandedLimit {
    key: String,
    count: u32,
    /// In nanoseconds.
    period: u64,
    burst: u32,
    /// Base64 of pairs of 64 bits, least byte first: a key's number and the nanoseconds it has left.
    live: String,
}

impl std::fmt::Debug for HandedLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandedLimits").field("routes", &self.routes.len()).finish_non_exhaustive()
    }
}

impl HandedLimits {
    /// What is counted now; `None` where there is nothing.
    pub(super) fn collect(snapshot: &Snapshot, now: Instant) -> Option<Self> {
        let all: Vec<(&Route, &RateLimit)> = snapshot
            .routes()
            .iter()
            .flat_map(|route| limits(route).iter().map(move |limit| (route, &**limit)))
            .collect();
        let live: Vec<usize> = all.iter().map(|(_, limit)| limit.live(now)).collect();
        let mut routes: BTreeMap<String, Vec<HandedLimit>> = BTreeMap::new();
        for ((route, limit), most) in all.into_iter().zip(shares(&live)).filter(|(_, most)| *most > 0) {
            let handed = HandedLimit::of(limit, &limit.export(most, now));
            routes.entry(route.key.clone()).or_default().push(handed);
        }
        (!routes.is_empty()).then(|| Self { seed: snapshot.limit_seed().get().bytes(), routes })
    }

    /// Goes on from there, before the first request.
    pub(super) fn apply(&self, snapshot: &Snapshot, now: Instant) {
        if !snapshot.limit_seed().adopt(Seed::new(self.seed)) {
            // The numbers would mean other keys.
            return;
        }
        // Two limits alike have each their own.
        let mut all: BTreeMap<&str, Vec<&HandedLimit>> =
            self.routes.iter().map(|(key, handed)| (key.as_str(), handed.iter().collect())).collect();
        for route in snapshot.routes() {
            let Some(handed) = all.get_mut(route.key.as_str()) else { continue };
            for limit in limits(route) {
                if let Some(at) = handed.iter().position(|handed| handed.is_of(limit)) {
                    limit.adopt(handed.remove(at).live(), now);
                }
            }
        }
    }
}

impl HandedLimit {
    fn of(limit: &RateLimit, live: &[Live]) -> Self {
        let mut bytes = Vec::with_capacity(16 * live.len());
        for Live { key, left } in live {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&left.to_le_bytes());
        }
        let rate = limit.rate();
        Self {
            key: kind(limit.key()),
            count: rate.count(),
            period: u64::try_from(rate.period().as_nanos()).unwrap_or(u64::MAX),
            burst: rate.burst(),
            live: STANDARD.encode(bytes),
        }
    }

    fn is_of(&self, limit: &RateLimit) -> bool {
        let rate = Rate::new(self.count, Duration::from_nanos(self.period), self.burst);
        self.key == kind(limit.key()) && rate == Some(limit.rate())
    }

    /// None where the text is bent.
    fn live(&self) -> Vec<Live> {
        let bytes = STANDARD.decode(&self.live).unwrap_or_default();
        let (words, _) = bytes.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        let live = |[key, left]: &[[u8; 8]; 2]| Live { key: u64::from_le_bytes(*key), left: u64::from_le_bytes(*left) };
        pairs.iter().take(MOST_KEYS).map(live).collect()
    }
}

fn limits(route: &Route) -> &[Arc<RateLimit>] {
    let rate = route.guards.as_ref().and_then(|guards| guards.rate.as_ref());
    rate.map(|rate| rate.limits()).unwrap_or_default()
}

/// By what a limit counts, in a form that stays the same over releases.
fn kind(key: &LimitKey) -> String {
    match key {
        LimitKey::ClientIp => "client_ip".to_owned(),
        LimitKey::Cookie(name) => format!("cookie:{name}"),
        LimitKey::Header(name) => format!("header:{name}"),
        // As it was called when it was a field like any other.
        LimitKey::Host => "header:host".to_owned(),
        LimitKey::Route => "route".to_owned(),
        LimitKey::Told(name) => format!("told:{name}"),
        LimitKey::User => "user".to_owned(),
    }
}

/// How many keys each limit may hand over, of as many as it has: small ones all, the others equal shares of the rest.
fn shares(live: &[usize]) -> Vec<usize> {
    let mut smallest_first: Vec<usize> = (0..live.len()).collect();
    smallest_first.sort_by_key(|at| live[*at]);
    let mut shares = vec![0; live.len()];
    let mut rest = MOST_IN_ALL;
    for (done, at) in smallest_first.into_iter().enumerate() {
        let share = live[at].min(MOST_KEYS).min(rest / (live.len() - done));
        shares[at] = share;
        rest -= share;
    }
    shares
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Version};

    use super::*;
    use crate::{config, policy::limit_key::Asker, telemetry::metrics::Metrics};

    fn snapshot(routes: &str) -> Snapshot {
        let yaml = format!(
            "version: 1\nlisteners: [{{ address: 127.0.0.1:1 }}]\nupstreams: {{ app: {{ backends: [a:1] }} }}\nroutes: [{routes}]\n"
        );
        let file = std::path::Path::new("test.yaml");
        let loaded = config::parse(&yaml, file).unwrap_or_else(|report| panic!("{report:?}"));
        Snapshot::build(&loaded.model, |upstream| upstream.backends.clone(), None, &Metrics::new("0", 1))
    }

    fn route(name: &str, limit: &str) -> String {
        format!("{{ name: {name}, match: {{ path: /{name} }}, upstream: app, rate_limit: {limit} }}")
    }

    fn passes(snapshot: &Snapshot, route: usize, client: u32, now: Instant) -> bool {
        let rate = snapshot.route(route).guards.as_ref().and_then(|guards| guards.rate.as_ref()).expect("a limit");
        let client = Some(std::net::Ipv4Addr::from_bits(client).into());
        rate.decide(&Asker { client, host: None, version: Version::HTTP_11, fields: &HeaderMap::new() }, now)
            .expect("one key")
            .retry_after
            .is_none()
    }

    /// As a successor reads it.
    fn passed(handed: &HandedLimits) -> HandedLimits {
        serde_json::from_slice(&serde_json::to_vec(handed).expect("JSON")).expect("readable")
    }

    #[test]
    fn a_client_beyond_its_limit_is_so_at_the_successor_until_its_time() {
        let api = route("api", "{ rate: 1/m, burst: 2 }");
        let (old, now) = (snapshot(&api), Instant::now());
        assert!(passes(&old, 0, 1, now) && passes(&old, 0, 1, now) && !passes(&old, 0, 1, now));
        let handed = passed(&HandedLimits::collect(&old, now + Duration::from_secs(20)).expect("counts"));
        let new = snapshot(&api);
        let later = Instant::now();
        handed.apply(&new, later);
        assert!(!passes(&new, 0, 1, later + Duration::from_secs(39)));
        assert!(passes(&new, 0, 1, later + Duration::from_secs(40)));
        assert!(passes(&new, 0, 2, later), "another client");
        let third = snapshot(&api);
        passed(&HandedLimits::collect(&new, later).expect("counts")).apply(&third, later);
        assert!(!passes(&third, 0, 1, later), "the seed goes on from process to process");
    }

    #[test]
    fn another_route_key_or_rate_begins_anew() {
        let now = Instant::now();
        let old = snapshot(&route("api", "[{ rate: 1/m }, { rate: 1/h }]"));
        assert!(passes(&old, 0, 1, now) && !passes(&old, 0, 1, now));
        let handed = passed(&HandedLimits::collect(&old, now).expect("counts"));
        let others = [
            ("api", "{ rate: 1/m, burst: 2 }", true),
            ("api", "{ rate: 2/2m }", true),
            ("api", "{ rate: 1/m, key: route }", true),
            ("api", "{ rate: 1/m, key: { header: X-Key } }", true),
            ("app", "{ rate: 1/m }", true),
            ("api", "{ rate: 1/m }", false),
            ("api", "[{ rate: 5/s }, { rate: 1/h }]", false),
        ];
        for (name, limit, anew) in others {
            let (new, now) = (snapshot(&route(name, limit)), Instant::now());
            handed.apply(&new, now);
            assert_eq!(passes(&new, 0, 1, now), anew, "{name}: {limit}");
        }
    }

    #[test]
    fn after_the_first_request_nothing_is_adopted() {
        let (now, api) = (Instant::now(), route("api", "{ rate: 1/m }"));
        let (old, new) = (snapshot(&api), snapshot(&api));
        assert!(passes(&old, 0, 1, now) && passes(&new, 0, 2, now));
        HandedLimits::collect(&old, now).expect("counts").apply(&new, now);
        assert_eq!(limits(new.route(0))[0].live(now), 1);
    }

    #[test]
    fn a_flood_of_keys_is_handed_over_within_bounds() {
        let routes: Vec<String> = (0..6).map(|n| route(&format!("r{n}"), "{ rate: 1/h }")).collect();
        let (old, now) = (snapshot(&routes.join(", ")), Instant::now());
        for client in 0..60_000 {
            for route in 0..5 {
                passes(&old, route, client, now);
            }
        }
        passes(&old, 5, 7, now);
        let handed = HandedLimits::collect(&old, now).expect("counts");
        let text = serde_json::to_vec(&handed).expect("JSON");
        assert!(text.len() < 5_000_000, "{}", text.len());
        let mut counts: Vec<usize> = handed.routes.values().map(|limits| limits[0].live().len()).collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 39_999, 40_000, 40_000, 40_000, 40_000], "equal shares");
        let new = snapshot(&routes.join(", "));
        passed(&handed).apply(&new, now);
        assert!(!passes(&new, 5, 7, Instant::now()), "not crowded out");
        let live: usize = new.routes().iter().map(|route| limits(route)[0].live(now)).sum();
        assert!(live > 199_000, "{live}");
    }

    #[test]
    fn small_limits_are_handed_over_whole_and_none_beyond_its_bound() {
        assert!(shares(&[]).is_empty());
        assert_eq!(shares(&[60_000, 3]), [50_000, 3]);
        assert_eq!(shares(&[0, 262_144, 10, 262_144, 262_144, 262_144]), [0, 49_997, 10, 49_997, 49_998, 49_998]);
    }

    #[test]
    fn what_is_bent_adopts_nothing_and_does_no_harm() {
        let (now, api) = (Instant::now(), route("api", "{ rate: 1/m }"));
        for live in ["", "*", "AAAA", "AQAAAAAAAAABAAAAAAAAA"] {
            let limit =
                HandedLimit { key: "client_ip".into(), count: 1, period: 60_000_000_000, burst: 1, live: live.into() };
            let new = snapshot(&api);
            assert!(limit.is_of(&limits(new.route(0))[0]));
            HandedLimits { seed: [1; 16], routes: [("api".to_owned(), vec![limit])].into() }.apply(&new, now);
            assert_eq!(limits(new.route(0))[0].live(now), 0, "{live}");
        }
    }
}
