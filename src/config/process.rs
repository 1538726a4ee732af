//! Pingora's own keys: those that rrlb honours, and a check and a warning for the others.

use std::{path::PathBuf, time::Duration};

use super::{
    decode::{Below, Decoder, Fields, Ignored, Item},
    document::ROOT,
    model::Process,
    tree::Value,
};

/// More threads than any machine has cores for.
const MAX_THREADS: u64 = 1024;

/// Decodes Pingora's keys of the top level.
pub(super) fn decode(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Process> {
    warn_ignored(d, fields);

    let threads = fields.get("threads").map_or(Some(1), |item| threads(d, &item));
    let daemon = fields.get("daemon").map_or(Some(false), |item| d.boolean(&item));
    let error_log = optional_path(d, fields, "error_log");
    let pid_file = optional_path(d, fields, "pid_file");
    let upgrade_sock = optional(fields, "upgrade_sock").map_or(Some(None), |item| {
        let text = d.string(&item)?;
        d.socket_path(&item, &text).map(Some)
    });
    let user = optional(fields, "user").map_or(Some(None), |item| account(d, &item).map(Some));
    let group = optional(fields, "group").map_or(Some(None), |item| account(d, &item).map(Some));
    let working_directory = optional_path(d, fields, "working_directory");
    let ca_file = optional(fields, "ca_file")
        .map_or(Some(None), |item| super::certificate::trust_store(d, &item).map(|store| Some(store.path)));
    let grace_period = seconds(d, fields, "grace_period_seconds", 30);
    let graceful_shutdown_timeout = seconds(d, fields, "graceful_shutdown_timeout_seconds", 5);
    let pool_size = fields
        .get("upstream_keepalive_pool_size")
        .map_or(Some(128), |item| d.count(&item, 1..=1_000_000))
        .map(|size| size as usize);
    let client_bind_to_ipv4 = bind_to(d, fields, "client_bind_to_ipv4", "an IPv4 address such as 10.0.0.5");
    let client_bind_to_ipv6 = bind_to(d, fields, "client_bind_to_ipv6", "an IPv6 address such as \"fd00::5\"");

    Some(Process {
        threads: threads?,
        daemon: daemon?,
        error_log: error_log?,
        pid_file: pid_file?,
        upgrade_sock: upgrade_sock?,
        user: user?,
        group: group?,
        working_directory: working_directory?,
        ca_file: ca_file?,
        grace_period: grace_period?,
        graceful_shutdown_timeout: graceful_shutdown_timeout?,
        upstream_keepalive_pool_size: pool_size?,
        client_bind_to_ipv4: client_bind_to_ipv4?,
        client_bind_to_ipv6: client_bind_to_ipv6?,
    })
}

/// Checks the type of keys without effect, and says that they have none.
fn warn_ignored(d: &mut Decoder<'_>, fields: &Fields<'_>) {
    for key in ROOT.keys {
        let Below::Ignored(kind, why) = key.below else { continue };
        let Some(item) = fields.get(key.name) else { continue };
        let nothing = matches!(item.node.value, Value::Null);
        let well_typed = match kind {
            Ignored::Boolean => d.boolean(&item).is_some(),
            Ignored::Count => nothing || d.integer(&item, 0..=u64::MAX).is_some(),
            Ignored::Scale => nothing || d.choice(&item, &[("linear", ()), ("log", ())]).is_some(),
        };
        if well_typed {
            let message = format!("`{}` has no effect in rrlb: {why}", key.name);
            d.warn_at(item.node.head(), &item.path, "no-effect", message, "take it out");
        }
    }
}

fn threads(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<usize> {
    if d.is_word(item, "0") {
        d.error(item, "zero-threads", "at least one thread is needed", "write the number of cores to use, from 1");
        return None;
    }
    d.integer(item, 1..=MAX_THREADS).and_then(|threads| usize::try_from(threads).ok())
}

/// A key that may be null, as in Pingora.
fn optional<'t>(fields: &Fields<'t>, name: &str) -> Option<Item<'t>> {
    fields.get(name).filter(|item| !matches!(item.node.value, Value::Null))
}

fn optional_path(d: &mut Decoder<'_>, fields: &Fields<'_>, name: &str) -> Option<Option<PathBuf>> {
    optional(fields, name).map_or(Some(None), |item| d.path(&item).map(Some))
}

fn account(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<String> {
    let name = d.string(item)?;
    let valid = !name.is_empty() && !name.contains(['\0', ':', '/', '\n']);
    if !valid {
        d.error(item, "bad-name", format!("`{}` is not an account's name", item.node.shown()), "");
    }
    valid.then_some(name)
}

fn seconds(d: &mut Decoder<'_>, fields: &Fields<'_>, name: &str, default: u64) -> Option<Duration> {
    const WEEK: u64 = 7 * 86_400;
    let seconds = optional(fields, name).map_or(Some(default), |item| d.integer(&item, 0..=WEEK));
    seconds.map(Duration::from_secs)
}

fn bind_to<T: std::str::FromStr>(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    name: &str,
    expected: &str,
) -> Option<Vec<T>> {
    let Some(item) = fields.get(name) else { return Some(Vec::new()) };
    let items = d.items(&item, "a list of addresses");
    d.all(items, |d, item| {
        let address = d.scalar(item, expected)?.value.parse().ok();
        if address.is_none() {
            let message = format!("`{}` is not {expected}", item.node.shown());
            d.error(item, "bad-address", message, "write it without a port");
        }
        address
    })
}
