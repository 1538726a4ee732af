//! Backends from DNS: what is asked, of whom, and what an answer means. An answer that is missing, wrong or empty takes
//! nothing away: addresses are kept by host and family until a better answer comes. When to ask again is decided by the
//! one who asks; only the records' TTL is said here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name as DnsName, RData, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{
    config::model::{DiscoverDns, DnsRecords},
    runtime::membership::{Declared, Spec},
    types::{BackendAddress, Name, Source, Weight},
};

/// Questions under way at the same time, of all upstreams.
const AT_ONCE: usize = 32;
/// One question: all servers and repetitions together.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Backends, and SRV records, that are taken of one answer; an answer has room for more than anybody means.
const MOST: usize = 1_000;
/// Servers that are asked, as in the system's own resolver.
const MOST_SERVERS: usize = 3;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What all upstreams share: a resolver for each list of servers, and the bound on questions.
pub(super) struct Lookups {
    permits: Semaphore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    given: HashMap<Vec<SocketAddr>, Resolvers>,
    /// With the text of the file that names them.
    system: Option<(Vec<u8>, Resolvers)>,
}

/// One for each server, because hickory's pool takes the first server's SERVFAIL for an answer. Asked in order.
type Resolvers = Arc<[TokioResolver]>;

/// What became of one question.
enum Answer {
    /// It cannot be known.
    Failed(String),
    /// There are no such records, or no such name.
    Nothing(&'static str),
    /// In the server's order.
    Records { data: Vec<RData>, ttl: Duration },
}

impl Default for Lookups {
    fn default() -> Self {
        Self { permits: Semaphore::new(AT_ONCE), known: Mutex::default() }
    }
}

impl Lookups {
    /// Forgets the resolvers of lists that are not `used` any more.
    pub(super) fn retain(&self, used: impl Fn(&[SocketAddr]) -> bool) {
        self.lock().given.retain(|servers, _| used(servers));
    }

    async fn ask(&self, servers: &[SocketAddr], name: &DnsName, kind: RecordType) -> Answer {
        let Ok(_permit) = self.permits.acquire().await else { return Answer::Failed("closed".into()) };
        let resolvers = match self.resolvers(servers) {
            Ok(resolvers) => resolvers,
            Err(error) => return Answer::Failed(error),
        };
        let asked = async {
            let mut failure = String::new();
            for resolver in resolvers.iter() {
                match resolver.lookup(name.clone(), kind).await {
                    Ok(found) => {
                        let ttl = found.answers().iter().map(|record| record.ttl).min().unwrap_or_default();
                        let data = found.answers().iter().map(|record| record.data.clone());
                        let data: Vec<RData> = data.filter(|data| data.record_type() == kind).collect();
                        if data.is_empty() {
                            return Answer::Nothing(NO_RECORDS);
                        }
                        return Answer::Records { data, ttl: Duration::from_secs(ttl.into()) };
                    }
                    Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
                        ResponseCode::NXDomain => return Answer::Nothing("the name does not exist"),
                        ResponseCode::NoError => return Answer::Nothing(NO_RECORDS),
                        code => failure = refused(code),
                    },
                    Err(NetError::Dns(DnsError::ResponseCode(code))) => failure = refused(code),
                    Err(NetError::Timeout) => failure = "no answer in time".into(),
                    Err(error) => failure = error.to_string(),
                }
            }
            Answer::Failed(failure)
        };
        timeout(LOOKUP_TIMEOUT, asked).await.unwrap_or_else(|_| Answer::Failed("no answer in time".into()))
    }

    fn resolvers(&self, servers: &[SocketAddr]) -> Result<Resolvers, String> {
        let mut known = self.lock();
        if !servers.is_empty() {
            if let Some(resolvers) = known.given.get(servers) {
                return Ok(resolvers.clone());
            }
            let resolvers = build(servers.iter().map(|server| name_server(*server)))?;
            known.given.insert(servers.to_vec(), resolvers.clone());
            return Ok(resolvers);
        }
        // Read each time: it changes while the process lives, and is far smaller than an answer.
        let text = std::fs::read(RESOLV_CONF).map_err(|error| format!("cannot read {RESOLV_CONF}: {error}"))?;
        if let Some((before, resolvers)) = &known.system
            && *before == text
        {
            return Ok(resolvers.clone());
        }
        let (config, _) = parse_resolv_conf(&text).map_err(|error| format!("{RESOLV_CONF}: {error}"))?;
        let (_, _, servers) = config.into_parts();
        let resolvers = build(servers)?;
        known.system = Some((text, resolvers.clone()));
        Ok(resolvers)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NO_RECORDS: &str = "there are no such records";

fn refused(code: ResponseCode) -> String {
    format!("the server answered {code}")
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|connection| connection.port = address.port());
    NameServerConfig::new(address.ip(), true, connections)
}

fn build(servers: impl IntoIterator<Item = NameServerConfig>) -> Result<Resolvers, String> {
    let servers: Vec<NameServerConfig> = servers.into_iter().take(MOST_SERVERS).collect();
    let each = LOOKUP_TIMEOUT / u32::try_from(servers.len().max(1)).unwrap_or(1);
    let resolver = |server: NameServerConfig| {
        // No search domains: names are asked as they are. No hosts file: that is not DNS.
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let mut options = ResolverOpts::default();
        options.attempts = 1;
        options.timeout = each / 2;
        options.num_concurrent_reqs = 1;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        builder.build().map_err(|error| error.to_string())
    };
    servers.into_iter().map(resolver).collect()
}

/// What one upstream knows from DNS.
pub(super) struct Finder {
    spec: DiscoverDns,
    lookups: Arc<Lookups>,
    /// The SRV records of the last answer that had some.
    targets: Vec<Target>,
    /// Addresses by host, each of the last answer that had some.
    hosts: BTreeMap<DnsName, Host>,
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    host: DnsName,
    port: u16,
    weight: u16,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Host {
    v4: BTreeSet<IpAddr>,
    v6: BTreeSet<IpAddr>,
}

/// What a round of questions came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Everything that is known now, also from before; sorted by address. Empty: nothing was ever known.
    pub(super) backends: Vec<Declared>,
    /// How long the answers hold; `None` where there were none.
    pub(super) ttl: Option<Duration>,
    /// What was not answered, and so is as before.
    pub(super) trouble: Option<String>,
    /// Backends beyond [`MOST`].
    pub(super) dropped: usize,
}

impl Found {
    fn holds(&mut self, ttl: Duration) {
        self.ttl = Some(self.ttl.map_or(ttl, |before| before.min(ttl)));
    }

    fn missed(&mut self, what: impl FnOnce() -> String) {
        self.trouble.get_or_insert_with(what);
    }
}

impl Finder {
    /// Nothing is known yet.
    pub(super) fn new(spec: DiscoverDns, lookups: Arc<Lookups>) -> Self {
        Self { spec, lookups, targets: Vec::new(), hosts: BTreeMap::new() }
    }

    /// Asks for everything once.
    pub(super) async fn find(&mut self) -> Found {
        let mut found = Found::default();
        // An absolute name: what `search` and `ndots` of resolv.conf say does not matter.
        let name = DnsName::from_ascii(&self.spec.name).map(|mut name| {
            name.set_fqdn(true);
            name
        });
        let name = match name {
            Ok(name) => name,
            Err(error) => {
                found.missed(|| format!("it is not a name of DNS: {error}"));
                return found;
            }
        };
        match self.spec.records {
            DnsRecords::Addresses { port } => self.targets = vec![Target { host: name, port, weight: 1 }],
            DnsRecords::Srv => self.find_targets(&name, &mut found).await,
        }
        self.find_addresses(&mut found).await;
        self.gather(&mut found);
        found
    }

    async fn find_targets(&mut self, name: &DnsName, found: &mut Found) {
        match self.lookups.ask(&self.spec.servers, name, RecordType::SRV).await {
            Answer::Records { data, ttl } => {
                found.holds(ttl);
                let (targets, dropped) = best_targets(&data);
                found.dropped += dropped;
                if targets.is_empty() {
                    found.missed(|| "SRV: the answer says that the service is not offered".into());
                } else {
                    self.targets = targets;
                }
            }
            Answer::Nothing(why) => found.missed(|| format!("SRV: {why}")),
            Answer::Failed(why) => found.missed(|| format!("SRV: {why}")),
        }
    }

    async fn find_addresses(&mut self, found: &mut Found) {
        let wanted: BTreeSet<DnsName> = self.targets.iter().map(|target| target.host.clone()).collect();
        self.hosts.retain(|host, _| wanted.contains(host));
        let mut questions = JoinSet::new();
        for host in wanted {
            let (lookups, servers) = (self.lookups.clone(), self.spec.servers.clone());
            questions.spawn(async move {
                let (v4, v6) = tokio::join!(
                    lookups.ask(&servers, &host, RecordType::A),
                    lookups.ask(&servers, &host, RecordType::AAAA)
                );
                (host, v4, v6)
            });
        }
        while let Some(finished) = questions.join_next().await {
            let Ok((host, v4, v6)) = finished else { continue };
            for answer in [&v4, &v6] {
                if let Answer::Records { ttl, .. } = answer {
                    found.holds(*ttl);
                }
            }
            if let Some(trouble) = self.hosts.entry(host.clone()).or_default().take_in(&v4, &v6) {
                found.missed(|| format!("{host} {trouble}"));
            }
        }
    }

    fn gather(&self, found: &mut Found) {
        let largest = self.targets.iter().map(|target| target.weight).max().unwrap_or(1);
        let mut shares: BTreeMap<SocketAddr, Weight> = BTreeMap::new();
        for target in &self.targets {
            let Some(host) = self.hosts.get(&target.host) else { continue };
            let weight = share(target.weight, largest);
            for ip in host.v4.iter().chain(&host.v6) {
                let share = shares.entry(SocketAddr::new(*ip, target.port)).or_insert(weight);
                *share = weight.max(*share);
            }
        }
        found.dropped += shares.len().saturating_sub(MOST);
        let declared = |(address, weight): (SocketAddr, Weight)| Declared {
            id: Name::from(address.to_string()),
            spec: Spec { address: BackendAddress::Inet(address), weight },
            source: Source::Dns,
        };
        // The least addresses, not the first of the answer: servers turn their answers round.
        found.backends = shares.into_iter().take(MOST).map(declared).collect();
    }
}

impl Host {
    /// Takes in both families' answers. Returns what is not known now, and so as before.
    fn take_in(&mut self, v4: &Answer, v6: &Answer) -> Option<String> {
        let known = |answer: &Answer| match answer {
            Answer::Records { data, .. } => data.iter().filter_map(address).collect(),
            Answer::Failed(_) | Answer::Nothing(_) => BTreeSet::new(),
        };
        let (found4, found6) = (known(v4), known(v6));
        let trouble = match (v4, v6) {
            (Answer::Failed(why), _) => Some(format!("A: {why}")),
            (_, Answer::Failed(why)) => Some(format!("AAAA: {why}")),
            (Answer::Nothing(why), Answer::Nothing(_)) => Some(format!("A and AAAA: {why}")),
            _ if found4.is_empty() && found6.is_empty() => Some("A and AAAA: no address to connect to".into()),
            _ => None,
        };
        // That one family has none is believed only where the other has some.
        let replaces = |answer: &Answer, found: &BTreeSet<IpAddr>, other: &BTreeSet<IpAddr>| match answer {
            Answer::Failed(_) => false,
            Answer::Nothing(_) | Answer::Records { .. } => !found.is_empty() || !other.is_empty(),
        };
        let (replaces4, replaces6) = (replaces(v4, &found4, &found6), replaces(v6, &found6, &found4));
        if replaces4 {
            self.v4 = found4;
        }
        if replaces6 {
            self.v6 = found6;
        }
        trouble
    }
}

/// An address that can be connected to. Filters answer 0.0.0.0, which would be this machine.
fn address(data: &RData) -> Option<IpAddr> {
    let ip = match data {
        RData::A(v4) => IpAddr::V4(v4.0),
        RData::AAAA(v6) => IpAddr::V6(v6.0),
        _ => return None,
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    (!ip.is_unspecified() && !ip.is_multicast() && !broadcast).then_some(ip)
}

/// The records of the lowest priority, at most [`MOST`], and how many more there were. `.` is no target (RFC 2782).
fn best_targets(data: &[RData]) -> (Vec<Target>, usize) {
    let records = || {
        data.iter().filter_map(|data| match data {
            RData::SRV(record) if !record.target.is_root() && record.port > 0 => Some(record),
            _ => None,
        })
    };
    let best = records().map(|record| record.priority).min();
    let target = |record: &hickory_resolver::proto::rr::rdata::SRV| {
        let mut host = record.target.to_lowercase();
        host.set_fqdn(true);
        Target { host, port: record.port, weight: record.weight }
    };
    let targets: BTreeSet<Target> = records().filter(|record| Some(record.priority) == best).map(target).collect();
    let dropped = targets.len().saturating_sub(MOST);
    (targets.into_iter().take(MOST).collect(), dropped)
}

/// A record's weight as a backend's. 0 is "a very small chance" in RFC 2782 and no new requests here, so it is 1. Where
/// the largest is over [`Weight::MAX`], all are made smaller alike.
fn share(weight: u16, largest: u16) -> Weight {
    let most = u32::from(Weight::MAX);
    let scaled = u32::from(weight) * most / u32::from(largest).max(most);
    u16::try_from(scaled.max(1)).ok().and_then(Weight::new).unwrap_or_default()
}
