//! The process in numbers, and what went wrong lately.

use serde::Serialize;

use super::{
    call::{Answer, Call, Shared},
    problem::Problem,
    query::LIMIT,
};
use crate::telemetry::failures::Failure;

/// Errors that are listed where the request does not say how many.
const DEFAULT_LIMIT: usize = 100;

/// `GET /v1/status`
pub(super) fn status(shared: &Shared, _: &Call) -> Result<Answer, Problem> {
    Answer::json(&shared.operator.status())
}

/// `GET /v1/errors`
pub(super) fn errors(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    #[derive(Serialize)]
    struct Errors {
        errors: Vec<Failure>,
    }
    let most = call.query.count(&LIMIT).unwrap_or(DEFAULT_LIMIT);
    Answer::json(&Errors { errors: shared.metrics.last_failures().last(most) })
}
