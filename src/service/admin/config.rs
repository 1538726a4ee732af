//! The configuration and the process: read, reload, confirm, upgrade, stop. What they do is the process's; here their
//! requests are read.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::StatusCode;

use super::{
    call::{Answer, Call, Shared},
    operator::{Reload, Upgrade, parse_abort_if},
    problem::{Kind, Problem},
    query::{ABORT_IF, CONFIRM, DRY_RUN, NOW},
};
use crate::types::parse_duration;

/// How long a successor may take to serve at most.
const LONGEST_UPGRADE: Duration = Duration::from_secs(3600);

/// `GET /v1/config`
pub(super) fn effective(shared: &Shared, _: &Call) -> Result<Answer, Problem> {
    Ok(Answer::yaml(shared.operator.effective_config()))
}

/// `POST /v1/config/reload`
pub(super) async fn reload(shared: Arc<Shared>, call: Call) -> Result<Answer, Problem> {
    let query = &call.query;
    let abort_if =
        query.text(&ABORT_IF).map(|text| parse_abort_if(text).map_err(|why| Problem::value("abort_if", why)));
    let how = Reload {
        dry_run: query.flag(&DRY_RUN, false),
        confirm: query.duration(&CONFIRM),
        abort_if: abort_if.transpose()?,
    };
    if how.abort_if.is_some() && how.confirm.is_none() {
        let detail = "it goes back only while it waits for the confirmation";
        return Err(Problem::value("abort_if", detail).hint("add confirm=60s"));
    }
    if how.dry_run && how.confirm.is_some() {
        return Err(Problem::value("confirm", "a dry run changes nothing that could be confirmed").hint("leave it out"));
    }
    Answer::json(&shared.operator.reload(how, &call.who).await?)
}

/// `POST /v1/config/confirm`
pub(super) async fn confirm(shared: Arc<Shared>, call: Call) -> Result<Answer, Problem> {
    shared.operator.confirm(&call.who).await?;
    Ok(Answer::empty(StatusCode::NO_CONTENT))
}

/// `POST /v1/upgrade`
pub(super) async fn upgrade(shared: Arc<Shared>, call: Call) -> Result<Answer, Problem> {
    let mut how = Upgrade::default();
    if let Some(body) = &call.body {
        let fields = body.fields("", &["binary", "timeout"])?;
        if let Some(path) = fields.text("binary")? {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(Problem::value("binary", "the path of a binary has to be absolute"));
            }
            if !call.is_owner {
                let detail =
                    "which program is run may be said only over the unix socket, by the user that rrlb runs as or root";
                let problem = Problem { field: Some("binary".into()), ..Problem::new(Kind::NotAllowed, detail) };
                return Err(
                    problem.hint("leave it out: the binary that runs is started anew from its place on the disk")
                );
            }
            how.binary = Some(PathBuf::from(path));
        }
        if let Some(text) = fields.text("timeout")? {
            let time = parse_duration(text).map_err(|why| Problem::value("timeout", why.to_string()))?;
            if time < Duration::from_secs(1) || time > LONGEST_UPGRADE {
                return Err(Problem::value("timeout", "it has to be from 1s to 1h"));
            }
            how.timeout = Some(time);
        }
    }
    Answer::json(&shared.operator.upgrade(how, &call.who).await?)
}

/// `POST /v1/stop`
pub(super) async fn stop(shared: Arc<Shared>, call: Call) -> Result<Answer, Problem> {
    let now = call.query.flag(&NOW, false);
    // The answer does not wait for the end, which would be its own.
    tokio::spawn(async move { shared.operator.stop(now, &call.who).await });
    Ok(Answer::empty(StatusCode::ACCEPTED))
}
