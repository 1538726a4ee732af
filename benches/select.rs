//! What choosing a backend costs: `cargo bench --bench select`. Prints nanoseconds per call, for our way past
//! `LoadBalancer::select_with` and through it.

use std::{
    hint::black_box,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use rrlb::{config, runtime::upstream::Upstream};

const CALLS: u32 = 200_000;

fn main() {
    println!("{:>8} {:>15} {:>10} {:>12} {:>8}", "backends", "balance", "pick", "select_with", "peer");
    for count in [3, 50] {
        for balance in ["round_robin", "least_requests", "random", "ip_hash"] {
            let backends: Vec<String> = (1..=count).map(|n| format!("127.0.0.1:{}", 10_000 + n)).collect();
            let text = format!(
                "listeners: [{{ address: 127.0.0.1:8080 }}]\nupstreams: {{ app: {{ balance: {balance}, backends: [\"{}\"] }} }}\n",
                backends.join("\", \"")
            );
            let loaded = config::parse(&text, Path::new("bench.yaml")).expect("a valid configuration");
            let model = loaded.model.upstreams.values().next().expect("one upstream");
            let upstream = Upstream::build(model, model.backends.clone(), &loaded.model.process, None);
            let client = Some(IpAddr::from([192, 0, 2, 1]));
            let pick = timed(|| drop(black_box(upstream.pick(client, &[]))));
            let select = timed(|| drop(black_box(upstream.balancer().select_with(b"1234", 16, |_, _| true))));
            let peer = timed(|| drop(black_box(upstream.backends()[0].peer())));
            println!("{count:>8} {balance:>15} {pick:>10.0?} {select:>12.0?} {peer:>8.0?}");
        }
    }
}

fn timed(run: impl Fn()) -> Duration {
    let began = Instant::now();
    (0..CALLS).for_each(|_| run());
    began.elapsed() / CALLS
}
