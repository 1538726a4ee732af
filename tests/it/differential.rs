//! The same requests and the same origins on all engines, and the same must come of it: for the client, for the origins, in
//! the log. `plan` makes cases from numbers, `stage` plays them, `design` says which differences are meant.
//!
//! `RRLB_TEST_DIFFERENTIAL=5000` plays so many cases, `RRLB_TEST_DIFFERENTIAL=@17` the case 17 alone and shows it.

mod design;
mod plan;
mod stage;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use plan::Case;
use stage::{FIRST, STUCK, Seen, Stage};

use crate::support::{
    proxy::{Config, Proxy},
    within,
};

/// Why two engines may differ in something.
type Meant = fn(&Case, &Seen, &Seen, &str) -> Option<&'static str>;

/// Cases in a usual run.
const USUAL: u64 = 300;
/// In the order in which they are compared.
const ENGINES: [&str; 3] = ["pingora", "exchange", "lane"];
/// That are played at a time.
const LANES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_engines_do_the_same_with_the_same() {
    let asked = std::env::var("RRLB_TEST_DIFFERENTIAL").unwrap_or_default();
    let numbers: Range<u64> = match asked.strip_prefix('@').map(str::parse::<u64>) {
        Some(Ok(one)) => one..one + 1,
        Some(Err(_)) => panic!("RRLB_TEST_DIFFERENTIAL={asked}: @ and a case's number"),
        None => 0..asked.parse().unwrap_or(USUAL),
    };
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let stage = async |engine: &str| Stage::new(&format!("{engine}{lane}.test")).await;
        lanes.push([stage("p").await, stage("x").await, stage("l").await]);
    }
    let proxy = proxy(&lanes).await;
    let listen = proxy.listen;
    let lanes: Vec<_> = lanes.into_iter().map(Arc::new).collect();
    let mut work = tokio::task::JoinSet::new();
    for (lane, stages) in lanes.iter().cloned().enumerate() {
        let mine: Vec<u64> = numbers.clone().filter(|number| *number % LANES as u64 == lane as u64).collect();
        work.spawn(async move {
            let mut played = Vec::new();
            for number in mine {
                let case = Arc::new(plan::case(number));
                let [pingora, exchange, lane] = &*stages;
                let all = async {
                    tokio::join!(pingora.play(listen, &case), exchange.play(listen, &case), lane.play(listen, &case))
                };
                let (pingora, exchange, lane) = within(&format!("case {number}"), all).await;
                played.push((number, [pingora, exchange, lane]));
            }
            (lane, played)
        });
    }
    let mut played = Vec::new();
    while let Some(done) = work.join_next().await {
        played.push(done.expect("no panic in a case"));
    }
    let ended: BTreeSet<String> = lanes.iter().flat_map(|lane| lane.iter().map(|stage| stage.host.clone())).collect();
    for host in &ended {
        let last = format!("GET /last HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: last\r\n\r\n");
        proxy.client().await.ask(last).await;
    }
    let log = log(&proxy, ended.len()).await;
    let (mut bugs, mut meant) = (Vec::new(), BTreeMap::<&str, usize>::new());
    for (lane, played) in played {
        for (number, mut seen) in played {
            let case = plan::case(number);
            for (stage, seen) in lanes[lane].iter().zip(&mut seen) {
                add_log(&log, &stage.host, &case, seen);
            }
            if numbers.end - numbers.start == 1 {
                eprintln!("{case:#?}\n{:#?}", ENGINES.iter().zip(&seen).collect::<Vec<_>>());
            }
            let late = |seen: &Seen| seen.iter().any(|(key, value)| key.ends_with(".left") && value == "Some(false)");
            if seen.iter().any(late) {
                bugs.push(format!("case {number}: an origin was not left in time\n{case:#?}"));
            }
            if seen.iter().any(|seen| seen.contains_key(STUCK)) {
                bugs.push(format!("case {number}: {:#?}\n{case:#?}", ENGINES.iter().zip(&seen).collect::<Vec<_>>()));
                continue;
            }
            let [pingora, exchange, lane] = &seen;
            let keys: BTreeSet<&str> = seen.iter().flat_map(|seen| seen.keys().map(String::as_str)).collect();
            let (mut lines, mut whys) = (String::new(), BTreeSet::new());
            for key in keys {
                let text = |seen: &Seen| seen.get(key).cloned().unwrap_or_else(|| "-".into());
                let rules: [(_, _, Meant); 2] =
                    [(pingora, exchange, design::meant), (exchange, lane, design::meant_in_lane)];
                let differ = rules.iter().filter(|(one, other, _)| one.get(key) != other.get(key));
                for (one, other, meant) in differ {
                    if let Some(why) = meant(&case, one, other, key) {
                        whys.insert(why);
                    } else {
                        lines += &format!("  {key}\n");
                        let told =
                            ENGINES.iter().zip(&seen).map(|(engine, seen)| format!("    {engine}: {}\n", text(seen)));
                        lines.extend(told);
                    }
                }
            }
            whys.into_iter().for_each(|why| *meant.entry(why).or_default() += 1);
            if !lines.is_empty() {
                bugs.push(format!("case {number}\n{lines}{case:#?}"));
            }
        }
    }
    eprintln!("meant: {meant:#?}");
    assert!(
        bugs.is_empty(),
        "{} of {} differ:\n{}",
        bugs.len(),
        numbers.end - numbers.start,
        bugs[..bugs.len().min(40)].join("\n")
    );
}

async fn proxy(lanes: &[[Stage; 3]]) -> Proxy {
    let (mut upstreams, mut routes) = (String::new(), String::new());
    for lane in lanes {
        for (stage, engine) in lane.iter().zip(ENGINES) {
            let (name, [one, two]) = (&stage.host[..2], stage.backends);
            upstreams += &format!("  {name}: {{ backends: [\"{one}\", \"{two}\"] }}\n");
            routes += &format!("  - {{ match: {{ host: {name}.test }}, engine: {engine}, upstream: {name} }}\n");
        }
    }
    let yaml = format!(
        "listeners: [{{ address: \"<listen>\", h2c: true }}]\ndefaults:\n  retry: {{ attempts: 3, budget: 100% }}\n\
         upstreams:\n{upstreams}routes:\n{routes}"
    );
    Config::new(&yaml).start().await
}

/// Lines by host and request, once the last requests' are there.
type Log = BTreeMap<(String, String), Vec<serde_json::Value>>;

async fn log(proxy: &Proxy, last: usize) -> Log {
    let is_last = |line: &serde_json::Value| line["request_id"] == "last";
    let lines = within("the log", async {
        loop {
            let lines = proxy.access_log_so_far();
            if lines.iter().filter(|line| is_last(line)).count() == last {
                return lines;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut log = Log::new();
    for line in lines {
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        log.entry((text("host"), text("request_id"))).or_default().push(line);
    }
    log
}

/// What was logged of a case's requests. How much of an answer that broke off had come by then is left to chance, and how much of
/// an upload that an answer cut short.
fn add_log(log: &Log, host: &str, case: &Case, seen: &mut Seen) {
    let first = seen.remove(FIRST).unwrap_or_default();
    for (n, ask) in case.asks.iter().enumerate() {
        let whole = seen.get(&format!("{n}.end")).is_some_and(|end| end == "whole");
        if !whole && let Some(body) = seen.get_mut(&format!("{n}.body")) {
            *body = "a part".into();
        }
        let lines = log.get(&(host.to_owned(), format!("c{}.{n}", case.number)));
        for line in lines.into_iter().flatten() {
            let place = match line["backend"].as_str() {
                None | Some("" | "-") => "none",
                Some(_) if n > 0 => "next",
                Some(backend) if backend == first => "first",
                Some(_) => "second",
            };
            let keys = ["method", "path", "protocol", "status", "attempts", "reason"];
            let mut text: String = keys.iter().map(|key| format!("{key}={} ", line[*key])).collect();
            if !ask.half {
                text += &format!("received={} ", line["bytes_received"]);
            }
            text += place;
            if whole {
                text += &format!(" bytes={}", line["bytes"]);
            }
            seen.entry(format!("log.{n}")).or_default().push_str(&text);
        }
    }
}
