//! What guards have counted stays with the requests it was counted for, over reloads and upgrades.

use crate::support::{
    origin::Origin,
    proxy::{Config, Proxy},
};

/// One request for each path; which of them were refused.
async fn refused(proxy: &Proxy, paths: &[&str]) -> Vec<bool> {
    let mut refused = Vec::new();
    for path in paths {
        refused.push(proxy.get(path).await.status() == 429);
    }
    refused
}

#[tokio::test]
async fn a_route_without_a_name_keeps_what_it_counted_wherever_it_stands() {
    let origin = Origin::echo("a").await;
    let yaml = |front: &str| {
        format!(
            "
            upstreams: {{ app: {{ backends: [\"{}\"] }} }}
            routes:
              {front}
              - {{ match: {{ path: /a }}, rate_limit: {{ rate: 2/h }}, upstream: app }}
              - {{ match: {{ path: /b }}, rate_limit: {{ rate: 2/h }}, upstream: app }}
              - {{ upstream: app }}",
            origin.address
        )
    };
    let proxy = Config::new(&yaml("")).start().await;
    assert_eq!(refused(&proxy, &["/a", "/a", "/a", "/b"]).await, [false, false, true, false]);
    let more = yaml("- { match: { path: /new }, rate_limit: { rate: 2/h }, respond: { body: new } }");
    proxy.config.instead(&more).write();
    proxy.reload().await;
    assert_eq!(refused(&proxy, &["/new", "/a"]).await, [false, true], "a reload forgives nobody");
    assert_eq!(refused(&proxy, &["/b", "/b"]).await, [false, true], "and nobody inherits another's");
    let proxy = proxy.upgrade().await;
    assert_eq!(refused(&proxy, &["/a", "/b"]).await, [true, true], "nor does an upgrade");
}
