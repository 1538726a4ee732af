//! `rrlb state`: what was changed at run time and is not in the configuration file.

use super::{
    arguments::StateCommand,
    backend::whole,
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::{Side, Table, clean, moment_of, span},
    wire::{Override, State},
};

const COLUMNS: &[(&str, Side)] = &[
    ("UPSTREAM", Side::Left),
    ("BACKEND", Side::Left),
    ("CHANGE", Side::Left),
    ("BY", Side::Left),
    ("AT (UTC)", Side::Left),
    ("WHY", Side::Left),
];

/// Does one of the commands.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn run(command: &StateCommand, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    match command {
        StateCommand::Patch => {
            let answer = client.call(Call::get(&["state", "patch"])).await?;
            screen.print(&clean(&answer.text()))
        }
        StateCommand::Show { json } => {
            let answer = client.call(Call::get(&["state"])).await?;
            if json.json {
                return screen.print(&answer.text());
            }
            let text = render(&answer.read()?, screen.colour);
            screen.print(&text)
        }
    }
}

fn render(state: &State, colour: bool) -> String {
    let mut table = Table::new(COLUMNS);
    for (upstream, backends) in &state.upstreams {
        for (id, over) in backends {
            table.row(vec![
                upstream.as_str().into(),
                id.as_str().into(),
                change(over).into(),
                over.who.as_str().into(),
                moment_of(over.at.saturating_mul(1000)).into(),
                over.why.as_str().into(),
            ]);
        }
    }
    if table.is_empty() { "nothing was changed at run time\n".to_owned() } else { table.render(colour) }
}

/// `weight 1 -> 5, drain`.
fn change(over: &Override) -> String {
    let base = over.base.as_ref();
    let from = |before: Option<String>, now: &String| match before {
        Some(before) if before != *now => format!("{before} -> {now}"),
        _ => now.clone(),
    };
    let mut parts = Vec::new();
    if over.removed {
        parts.push("removed".to_owned());
    }
    if let Some(address) =
        over.address.as_ref().filter(|now| base.is_none_or(|base| base.address.as_ref() != Some(*now)))
    {
        parts.push(match base.and_then(|base| base.address.clone()) {
            before @ Some(_) => format!("address {}", from(before, address)),
            None => format!("added: {address}"),
        });
    }
    if let Some(weight) = over.weight.filter(|now| base.is_none_or(|base| base.weight != Some(*now))) {
        let before = base.and_then(|base| base.weight).map(|weight| weight.to_string());
        parts.push(format!("weight {}", from(before, &weight.to_string())));
    }
    if let Some(admin) = over.admin.as_ref().filter(|admin| *admin != "ready") {
        parts.push(admin.clone());
    }
    if let Some(ttl) = over.lease_ttl_seconds {
        parts.push(format!("lease of {}", span(whole(ttl))));
    }
    if let Some(left) = over.leaving_in {
        parts.push(format!("leaves in {} at the latest", span(whole(left))));
    }
    match &over.taken_by {
        Some(other) => parts.push(format!("without effect: its address is that of {other}")),
        None if over.dormant => parts.push("without effect: nobody declares it now".to_owned()),
        None => {}
    }
    if over.persist == Some(false) {
        parts.push("until a restart".to_owned());
    }
    parts.join(", ")
}
