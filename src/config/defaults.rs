//! What upstreams inherit field by field: timeouts, retry, health check, ejection and slow start; and the built-in values
//! below that.

use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::{
    decode::{Decoder, Fields, Item, Table, table, value},
    model::{HealthCheck, HttpProbe, Probe, Timeouts},
    route::path_text,
};
use crate::{
    policy::{
        health::{InitialHealth, Thresholds},
        outlier::EjectPolicy,
        retry::RetryPolicy,
    },
    types::Percent,
};

pub(super) const DEFAULTS: Table = Table {
    what: "the defaults",
    keys: &[
        table("timeouts", "see there", &TIMEOUTS),
        table("retry", "see there", &RETRY),
        table("health_check", "off", &HEALTH_CHECK),
        table("eject", "off", &EJECT),
        value("slow_start", "off"),
    ],
};

pub(super) const TIMEOUTS: Table = Table {
    what: "timeouts",
    keys: &[
        value("connect", "3s"),
        value("tls", "5s"),
        value("first_byte", "60s"),
        value("read", "60s"),
        value("write", "60s"),
        value("idle", "55s"),
        value("total", "off"),
        value("websocket_idle", "1h"),
    ],
};

pub(super) const RETRY: Table = Table {
    what: "retry",
    keys: &[value("attempts", "2"), value("on", "[connect, reset_before_headers]"), value("budget", "20%")],
};

pub(super) const HEALTH_CHECK: Table = Table {
    what: "a health check",
    keys: &[
        value("type", "tcp"),
        value("interval", "5s"),
        value("timeout", "1s"),
        value("rise", "2"),
        value("fall", "3"),
        value("initial", "down"),
        value("path", "/"),
        value("host", "the SNI name, else the address"),
        value("status", "200 to 299"),
    ],
};

pub(super) const EJECT: Table = Table {
    what: "eject",
    keys: &[value("consecutive_failures", "5"), value("base", "10s"), value("max_percent", "50%")],
};

/// What an upstream has where its own mapping is silent.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    pub(super) timeouts: Timeouts,
    pub(super) retry: RetryPolicy,
    pub(super) health_check: Option<HealthCheck>,
    pub(super) eject: Option<EjectPolicy>,
    pub(super) slow_start: Option<Duration>,
}

impl Default for Defaults {
    /// The built-in values.
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            timeouts: Timeouts {
                connect: Duration::from_secs(3),
                tls: Duration::from_secs(5),
                first_byte: MINUTE,
                read: MINUTE,
                write: MINUTE,
                idle: Duration::from_secs(55),
                total: None,
                websocket_idle: Duration::from_secs(3600),
            },
            retry: RetryPolicy {
                attempts: 2,
                on_connect: true,
                on_reset_before_headers: true,
                budget: const { Percent::new(20).expect("20 is at most 100") },
            },
            health_check: None,
            eject: None,
            slow_start: None,
        }
    }
}

const BUILT_IN_CHECK: HealthCheck = HealthCheck {
    probe: Probe::Tcp,
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(1),
    thresholds: Thresholds { rise: 2, fall: 3, initial: InitialHealth::Down },
};

/// The file's `defaults`.
pub(super) fn decode(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Defaults> {
    let built_in = Defaults::default();
    let fields = d.fields(item, &DEFAULTS)?;
    inherited(d, &fields, &built_in)
}

/// The inherited keys of a mapping over what it inherits.
pub(super) fn inherited(d: &mut Decoder<'_>, fields: &Fields<'_>, base: &Defaults) -> Option<Defaults> {
    let timeouts = fields.get("timeouts").map_or(Some(base.timeouts), |item| timeouts(d, &item, base.timeouts));
    let retry = fields.get("retry").map_or(Some(base.retry), |item| retry(d, &item, base.retry));
    let health_check = fields
        .get("health_check")
        .map_or_else(|| Some(base.health_check.clone()), |item| health_check(d, &item, base.health_check.as_ref()));
    let eject = fields.get("eject").map_or(Some(base.eject), |item| eject(d, &item, base.eject));
    let slow_start = fields.get("slow_start").map_or(Some(base.slow_start), |item| slow_start(d, &item));
    Some(Defaults {
        timeouts: timeouts?,
        retry: retry?,
        health_check: health_check?,
        eject: eject?,
        slow_start: slow_start?,
    })
}

/// The outer `None` is a reported problem, the inner one `off`.
fn slow_start(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Option<Duration>> {
    if d.is_word(item, "off") {
        return Some(None);
    }
    let over = d.duration(item)?;
    if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&over) {
        let message = format!("`{}` is out of range", item.node.shown());
        d.error(item, "out-of-range", message, "write 1s to 1h, or off");
        return None;
    }
    Some(Some(over))
}

fn timeouts(d: &mut Decoder<'_>, item: &Item<'_>, base: Timeouts) -> Option<Timeouts> {
    let fields = d.fields(item, &TIMEOUTS)?;
    let mut timeout = |name: &str, base: Duration| fields.get(name).map_or(Some(base), |item| d.duration(&item));
    let connect = timeout("connect", base.connect);
    let tls = timeout("tls", base.tls);
    let first_byte = timeout("first_byte", base.first_byte);
    let read = timeout("read", base.read);
    let write = timeout("write", base.write);
    let idle = timeout("idle", base.idle);
    let websocket_idle = timeout("websocket_idle", base.websocket_idle);
    let total = match fields.get("total") {
        None => Some(base.total),
        Some(item) if d.is_word(&item, "off") => Some(None),
        Some(item) => d.duration(&item).map(Some),
    };
    Some(Timeouts {
        connect: connect?,
        tls: tls?,
        first_byte: first_byte?,
        read: read?,
        write: write?,
        idle: idle?,
        total: total?,
        websocket_idle: websocket_idle?,
    })
}

fn retry(d: &mut Decoder<'_>, item: &Item<'_>, base: RetryPolicy) -> Option<RetryPolicy> {
    #[derive(Clone, Copy, PartialEq)]
    enum On {
        Connect,
        Reset,
    }
    let fields = d.fields(item, &RETRY)?;
    let attempts = fields.get("attempts").map_or(Some(base.attempts), |item| d.count(&item, 1..=10));
    let on = fields.get("on").map_or(Some((base.on_connect, base.on_reset_before_headers)), |item| {
        let items = d.one_or_more(&item, "a list of connect and reset_before_headers");
        let words = [("connect", On::Connect), ("reset_before_headers", On::Reset)];
        let on = d.all(items, |d, item| d.choice(item, &words))?;
        Some((on.contains(&On::Connect), on.contains(&On::Reset)))
    });
    let budget = fields.get("budget").map_or(Some(base.budget), |item| d.percent(&item));
    let (on_connect, on_reset_before_headers) = on?;
    Some(RetryPolicy { attempts: attempts?, on_connect, on_reset_before_headers, budget: budget? })
}

/// The outer `None` is a reported problem, the inner one `off`.
fn health_check(d: &mut Decoder<'_>, item: &Item<'_>, base: Option<&HealthCheck>) -> Option<Option<HealthCheck>> {
    let inherited = base.cloned().unwrap_or(BUILT_IN_CHECK);
    if item.is_scalar() {
        let kind = d.choice(item, &[("tcp", Some(Kind::Tcp)), ("http", Some(Kind::Http)), ("off", None)])?;
        return Some(kind.map(|kind| HealthCheck { probe: kind.probe(&inherited.probe), ..inherited }));
    }
    if !item.is_map() {
        d.wrong_type(item, "tcp, http, off or a mapping", "write `health_check: tcp`");
        return None;
    }
    let fields = d.fields(item, &HEALTH_CHECK)?;
    let kind = fields
        .get("type")
        .map_or(Some(Kind::of(&inherited.probe)), |item| d.choice(&item, &[("tcp", Kind::Tcp), ("http", Kind::Http)]));
    let interval = fields.get("interval").map_or(Some(inherited.interval), |item| interval(d, &item));
    let timeout = fields.get("timeout").map_or(Some(inherited.timeout), |item| d.duration(&item));
    let thresholds = thresholds(d, &fields, inherited.thresholds);
    let probe = match kind {
        Some(Kind::Http) => http_probe(d, &fields, &inherited.probe).map(Probe::Http),
        Some(Kind::Tcp) => no_http_keys(d, &fields).map(|()| Probe::Tcp),
        None => None,
    };
    Some(Some(HealthCheck { probe: probe?, interval: interval?, timeout: timeout?, thresholds: thresholds? }))
}

#[derive(Clone, Copy)]
enum Kind {
    Http,
    Tcp,
}

impl Kind {
    fn of(probe: &Probe) -> Self {
        match probe {
            Probe::Http(_) => Self::Http,
            Probe::Tcp => Self::Tcp,
        }
    }

    fn probe(self, inherited: &Probe) -> Probe {
        match self {
            Self::Http => Probe::Http(http_base(inherited)),
            Self::Tcp => Probe::Tcp,
        }
    }
}

fn http_base(inherited: &Probe) -> HttpProbe {
    match inherited {
        Probe::Http(probe) => probe.clone(),
        Probe::Tcp => HttpProbe { path: "/".to_owned(), host: None, status: Vec::new() },
    }
}

fn interval(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Duration> {
    let interval = d.duration(item)?;
    at_least(d, item, interval, Duration::from_millis(10), "write 10ms or more")
}

fn at_least<T: PartialOrd>(d: &mut Decoder<'_>, item: &Item<'_>, value: T, least: T, help: &str) -> Option<T> {
    if value < least {
        d.error(item, "out-of-range", format!("`{}` is out of range", item.node.shown()), help);
        return None;
    }
    Some(value)
}

/// The outer `None` is a reported problem, the inner one `off`.
fn eject(d: &mut Decoder<'_>, item: &Item<'_>, base: Option<EjectPolicy>) -> Option<Option<EjectPolicy>> {
    const LEAST: Percent = Percent::new(1).expect("1 is at most 100");
    if d.is_word(item, "off") {
        return Some(None);
    }
    if !item.is_map() {
        d.wrong_type(item, "off or a mapping", "write `eject: {}` for five failures in a row, 10s and 50%");
        return None;
    }
    let inherited = base.unwrap_or(EjectPolicy::DEFAULT);
    let fields = d.fields(item, &EJECT)?;
    let failures = fields
        .get("consecutive_failures")
        .map_or(Some(inherited.consecutive_failures), |item| d.count(&item, 1..=1000));
    let base = fields.get("base").map_or(Some(inherited.base), |item| {
        let base = d.duration(&item)?;
        at_least(d, &item, base, Duration::from_millis(100), "write 100ms or more")
    });
    let max_percent = fields.get("max_percent").map_or(Some(inherited.max_percent), |item| {
        let most = d.percent(&item)?;
        at_least(d, &item, most, LEAST, "write 1% or more, or `eject: off`")
    });
    Some(Some(EjectPolicy { consecutive_failures: failures?, base: base?, max_percent: max_percent? }))
}

fn thresholds(d: &mut Decoder<'_>, fields: &Fields<'_>, base: Thresholds) -> Option<Thresholds> {
    let rise = fields.get("rise").map_or(Some(base.rise), |item| d.count(&item, 1..=1000));
    let fall = fields.get("fall").map_or(Some(base.fall), |item| d.count(&item, 1..=1000));
    let words = [("down", InitialHealth::Down), ("up", InitialHealth::Up)];
    let initial = fields.get("initial").map_or(Some(base.initial), |item| d.choice(&item, &words));
    Some(Thresholds { rise: rise?, fall: fall?, initial: initial? })
}

fn http_probe(d: &mut Decoder<'_>, fields: &Fields<'_>, inherited: &Probe) -> Option<HttpProbe> {
    let base = http_base(inherited);
    let path = fields.get("path").map_or(Some(base.path), |item| path_text(d, &item, true));
    let host = fields.get("host").map_or(Some(base.host), |item| host_value(d, &item).map(Some));
    let status = fields.get("status").map_or(Some(base.status), |item| {
        let items = d.at_least_one(&item, "a status or a list of statuses", "leave the key out for 200 to 299");
        d.all(items, |d, item| status(d, item))
    });
    Some(HttpProbe { path: path?, host: host?, status: status? })
}

/// A value for `Host`: a name or address, with or without a port.
pub(super) fn host_value(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<HeaderValue> {
    let text = d.scalar(item, "a host name")?.value;
    let authority = text.parse::<http::uri::Authority>().ok().filter(|_| !text.contains('@'));
    let value = authority.and_then(|_| HeaderValue::from_str(&text).ok());
    if value.is_none() {
        let message = format!("`{}` is not a host name", item.node.shown());
        d.error(item, "bad-host", message, "write a name such as app.internal, with or without a port");
    }
    value
}

fn status(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<StatusCode> {
    let number = d.count(item, 200..=599)?;
    u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok())
}

fn no_http_keys(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<()> {
    let wrong: Vec<Item<'_>> = ["path", "host", "status"].iter().filter_map(|name| fields.get(name)).collect();
    for item in &wrong {
        let key = item.path.rsplit('.').next().unwrap_or_default();
        let message = format!("a TCP check has no `{key}`");
        d.error_at(item.node.head(), &item.path, "not-an-http-check", message, "add `type: http`");
    }
    wrong.is_empty().then_some(())
}
