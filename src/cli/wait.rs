//! `--wait`: until backends have no request in flight, or are gone.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    arguments::Targets,
    backend::place,
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::{clean_line, count, span},
    wire::{Backend, Status},
};

const POLL: Duration = Duration::from_millis(200);
/// An instance that hands over to its successor may be out of reach for a moment.
const ABSENT: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Removed, wholly.
    Gone,
    /// No request in flight.
    Idle,
}

/// Waits for all of them.
///
/// # Errors
/// The time is up; somebody made one of them ready again; the instance is gone.
pub(super) async fn wait(
    targets: &Targets,
    until: Until,
    limit: Option<Duration>,
    quiet: bool,
    client: &Client,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut seen = begun;
    let mut shown = begun;
    let mut left: Vec<(&str, u64)> = targets.ids.iter().map(|id| (id.as_str(), 0)).collect();
    loop {
        let mut next = Vec::new();
        let mut elsewhere = false;
        for (id, before) in left {
            match look(&targets.upstream, id, until, client).await {
                Ok(Some(in_flight)) => next.push((id, in_flight)),
                // What it has in flight itself is not all.
                Ok(None) if elsewhere || predecessor_drains(client).await => {
                    elsewhere = true;
                    next.push((id, 0));
                }
                Ok(None) => {
                    let how = if until == Until::Gone { "gone" } else { "no request in flight" };
                    if !quiet {
                        screen.print(&clean_line(&format!("{}: {how}", place(&targets.upstream, id))))?;
                    }
                }
                Err(Failure::NoInstance { .. }) if seen.elapsed() < ABSENT => {
                    next.push((id, before));
                    continue;
                }
                Err(failure) => return Err(failure),
            }
            seen = Instant::now();
        }
        if next.is_empty() {
            return Ok(());
        }
        left = next;
        let waited = begun.elapsed();
        if limit.is_some_and(|limit| waited >= limit) {
            let what = flights(&left, elsewhere);
            return Err(Failure::Deadline(format!(
                "still {what} after {}; it goes on without this command",
                span(waited.as_secs())
            )));
        }
        if shown.elapsed() >= screen.pace {
            shown = Instant::now();
            screen.progress(&clean_line(&format!("{}, {}", flights(&left, elsewhere), span(waited.as_secs()))));
        }
        sleep(limit.map_or(POLL, |limit| POLL.min(limit.saturating_sub(waited)))).await;
    }
}

/// `app-1: 3 requests in flight; app-2: …`; `elsewhere`: and perhaps more in the process before.
fn flights(left: &[(&str, u64)], elsewhere: bool) -> String {
    let mut each: Vec<String> =
        left.iter().map(|(id, in_flight)| format!("{id}: {} in flight", count(*in_flight, "request"))).collect();
    if elsewhere {
        each.push("the process before still has requests".to_owned());
    }
    each.join("; ")
}

/// Whether requests may be in flight in a process before the one that answers.
async fn predecessor_drains(client: &Client) -> bool {
    let answer = client.call(Call::get(&["status"])).await;
    // Where nothing is known the next look tells.
    answer.and_then(|answer| answer.read::<Status>()).map_or(true, |status| status.predecessor_draining)
}

/// Requests in flight; `None` where the waiting for it is over.
async fn look(upstream: &str, id: &str, until: Until, client: &Client) -> Result<Option<u64>, Failure> {
    let backend: Backend = match client.call(Call::get(&["upstreams", upstream, "backends", id])).await {
        Ok(answer) => answer.read()?,
        Err(Failure::Refused(problem)) if problem.status == 404 => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let leaving = backend.leaving_in.is_some();
    if backend.admin == "ready" && !leaving {
        let title = format!("{} is ready again: somebody else changed it meanwhile", place(upstream, id));
        return Err(Failure::refused(title, backend.changed.map(|changed| format!("changed by {}", changed.who))));
    }
    let over = backend.in_flight == 0 && (until == Until::Idle || !leaving);
    Ok((!over).then_some(backend.in_flight))
}
