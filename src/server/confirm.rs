//! Commit-confirmed: a reload that goes back by itself unless somebody confirms it, and earlier where more answers are
//! errors than in the minute before. While one waits every other reload, and every upgrade, is refused: what is to be
//! confirmed would not be what was asked about, or nobody would be left to take it back.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use nix::unistd::geteuid;

use super::{
    note::{Note, NotedMerged, Source, Tried},
    notify,
    reload::Way,
    running::Running,
};
use crate::{
    config::model::Model,
    proxy::Proxies,
    service::admin::operator::{AbortIf, OperatorError, Reload},
};

/// How far back `abort_if` compares, in samples of one second.
const MINUTE: usize = 60;
/// Of these only the last are judged alone as well: what breaks late must not hide behind what went well before.
const LATELY: usize = 10;
/// Answers before they are judged: one error among few says nothing.
const ENOUGH: u64 = 20;

/// Until what could not be taken back is tried again: first, and at most, as the time doubles.
const AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// A reload that waits for its confirmation.
pub(super) struct Pending {
    /// What it goes back to.
    pub(super) before: Arc<Model>,
    /// Where that came from.
    pub(super) source: Source,
    /// The proxies of that, worker for worker: they hold what was read from files that may be others by now.
    pub(super) proxies: Vec<Arc<Proxies>>,
    pub(super) within: Duration,
    pub(super) due: Instant,
    pub(super) abort: Option<Abort>,
    /// It could not be taken back: why it was to be, and how long was waited before.
    pub(super) failed: Option<(String, Duration)>,
}

/// When it goes back early.
pub(super) struct Abort {
    pub(super) above: AbortIf,
    /// Of the minute before the reload.
    pub(super) minute: Answers,
    /// All until the reload.
    pub(super) until: Answers,
}

/// Finished requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) all: u64,
    /// Those with a 5xx.
    pub(super) errors: u64,
}

impl From<(u64, u64)> for Answers {
    fn from((all, errors): (u64, u64)) -> Self {
        Self { all, errors }
    }
}

impl Answers {
    /// What came since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self { all: self.all.saturating_sub(before.all), errors: self.errors.saturating_sub(before.errors) }
    }

    fn add(self, other: Self) -> Self {
        Self { all: self.all + other.all, errors: self.errors + other.errors }
    }

    /// In hundredths of a percent.
    fn share(self) -> u64 {
        (self.errors * 10_000).checked_div(self.all).unwrap_or(0)
    }
}

/// What was noted before a reload that is to be confirmed, and why that could not be noted; `None`: it is not to be.
pub(super) type Noted = Option<(Option<Note>, Option<String>)>;

/// The answers of each of the last 60 seconds.
#[derive(Debug, Default)]
pub(super) struct Samples {
    seconds: VecDeque<Answers>,
    last: Option<Answers>,
}

impl Samples {
    /// A second has passed; `answers` is all there were so far.
    pub(super) fn push(&mut self, answers: (u64, u64)) {
        let now = Answers::from(answers);
        if let Some(last) = self.last.replace(now) {
            if self.seconds.len() == MINUTE {
                self.seconds.pop_front();
            }
            self.seconds.push_back(now.since(last));
        }
    }

    /// Of the last minute.
    pub(super) fn minute(&self) -> Answers {
        self.last(MINUTE)
    }

    fn last(&self, seconds: usize) -> Answers {
        self.seconds.iter().rev().take(seconds).copied().fold(Answers::default(), Answers::add)
    }
}

/// Why the reload is taken back; `None`: not yet. `lately` may reach back to before the reload.
fn harm(abort: &Abort, since: Answers, lately: Answers) -> Option<String> {
    let judged = |answers, when| verdict(abort.above, abort.minute, answers, when);
    let late = || (lately.all < since.all).then(|| judged(lately, "in the last 10 s"))?;
    judged(since, "since the reload").or_else(late)
}

fn verdict(above: AbortIf, minute: Answers, since: Answers, when: &str) -> Option<String> {
    let (now, before) = (since.share(), minute.share());
    if since.all < ENOUGH || now <= u64::from(above.share) || now <= before {
        return None;
    }
    let percent = |share: u64| format!("{}.{:02} %", share / 100, share % 100);
    Some(format!(
        "{} of {} answers {when} were 5xx ({}; the minute before {}; allowed {})",
        since.errors,
        since.all,
        percent(now),
        percent(before),
        percent(u64::from(above.share)),
    ))
}

impl Running {
    /// Whether a reload waits for its confirmation.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.ledger().pending.is_some()
    }

    /// Why a successor may not have what there is; `None`: it may. To be called when it has its claim: what is reloaded
    /// by then ends first, and whoever comes later finds the claim.
    pub(super) fn holds_up_upgrade(&self) -> Option<OperatorError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_unconfirmed().then_some(OperatorError::Unconfirmed)
    }

    /// Keeps a reload that waits, or the file that this process was started with though nobody had confirmed it.
    ///
    /// # Errors
    /// None waits.
    pub(super) fn confirm(&self, who: &str) -> Result<(), OperatorError> {
        let generation = {
            let mut ledger = self.ledger();
            match ledger.pending.take() {
                Some(Pending { failed: None, .. }) => {}
                Some(_) => ledger.last_error.clear(),
                None if std::mem::take(&mut ledger.kept_unconfirmed) => ledger.last_error.clear(),
                None if ledger.taken_back.is_some() => return Err(OperatorError::TakenBack),
                None => return Err(OperatorError::NothingToConfirm),
            }
            ledger.generation
        };
        self.unconfirmed.settle();
        notify::status(&format!("serving configuration {generation}"));
        self.tell("config.confirmed", who, format!("configuration {generation} is kept"), String::new());
        Ok(())
    }

    /// Notes that `text` is about to be loaded, for a start after the end of this process. Returns what was noted before.
    pub(super) fn note_unconfirmed(&self, text: &str, model: &Model, how: &Reload, who: &str) -> Noted {
        let within = how.confirm?;
        let (abort, confirmed) = {
            let ledger = self.ledger();
            (how.abort_if.map(|above| (above, ledger.samples.minute())), ledger.source.clone())
        };
        let (before, written) = self.unconfirmed.note(Tried { text, who, within, abort, confirmed }, model, &self.file);
        let mistrusted = || {
            let user = self.store.model().process.user.clone().filter(|_| !geteuid().is_root())?;
            Some(format!("user {user} can write what is noted, and a start by root does not go by that"))
        };
        let lost = written.err().map(|error| error.to_string()).or_else(mistrusted).map(|why| {
            format!("{why}; were this process killed, the next start would not take the configuration back")
        });
        if let Some(line) = &lost {
            log::warn!("{line}");
        }
        Some((before, lost))
    }

    /// What was just put in place is to be confirmed, as `how` says.
    pub(super) fn await_confirmation(&self, how: &Reload, before: Arc<Model>, proxies: Vec<Arc<Proxies>>) {
        let Some(within) = how.confirm else { return self.unconfirmed.settle() };
        if let Some((before, after)) = self.store.merged_texts() {
            self.unconfirmed.merged(NotedMerged { before, after });
        }
        let mut ledger = self.ledger();
        let abort = how.abort_if.map(|above| Abort {
            above,
            minute: ledger.samples.minute(),
            until: Answers::from(self.metrics.answers()),
        });
        let (source, due) = (ledger.source.clone(), Instant::now() + within);
        ledger.pending = Some(Pending { before, source, proxies, within, due, abort, failed: None });
    }

    /// Takes back what was not confirmed in time or does harm; the latter is looked at once a second.
    pub(super) fn judge(&self, now: Instant, second: bool) {
        let waits = |pending: &Pending| pending.due <= now || (second && pending.abort.is_some());
        if !self.ledger().pending.as_ref().is_some_and(waits) {
            return;
        }
        // In this order: while a reload has its turn none can be taken back, and the other way round.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = Answers::from(self.metrics.answers());
        let (pending, why) = {
            let mut ledger = self.ledger();
            let Some(pending) = &ledger.pending else { return };
            let lately = ledger.samples.last(LATELY);
            let harm = |abort: &Abort| harm(abort, answers.since(abort.until), lately);
            let why = match pending.abort.as_ref().and_then(harm) {
                Some(why) => why,
                None if pending.due <= now
                    && let Some((why, _)) = &pending.failed =>
                {
                    why.clone()
                }
                None if pending.due <= now => format!("not confirmed within {:?}", pending.within),
                None => return,
            };
            let Some(pending) = ledger.pending.take() else { return };
            (pending, why)
        };
        let taken = self.ledger().generation;
        match self.replace(pending.before.clone(), Way::Back(&pending.proxies)) {
            Ok(()) => {
                let generation = self.count();
                self.unconfirmed.take_back(&why, self.store.is_kept());
                {
                    let mut ledger = self.ledger();
                    ledger.last_error = format!("configuration {taken} was taken back: {why}");
                    ledger.source = pending.source;
                    ledger.taken_back = Some(why.clone());
                }
                log::warn!("configuration {taken} is taken back: {why}");
                notify::status(&format!("serving; configuration {taken} was taken back"));
                let what = format!("configuration {taken} taken back; {generation} is as before it");
                self.tell("config.reverted", "rrlb", what, why);
            }
            Err(error) => {
                let pause = pending.failed.map_or(AGAIN.0, |(_, last)| (last * 2).min(AGAIN.1));
                let text = format!(
                    "configuration {taken} could not be taken back ({why}): {error}; it goes on, and this is tried again in \
                     {pause:?} unless `rrlb confirm` keeps it"
                );
                log::error!("{text}");
                let mut ledger = self.ledger();
                ledger.last_error = text;
                // Its harm is known: it is not judged again, but taken back as soon as that can be.
                let failed = Some((why, pause));
                ledger.pending = Some(Pending { due: now + pause, abort: None, failed, ..pending });
                drop(ledger);
                let what = format!("configuration {taken} could not be taken back");
                self.tell("config.reload_failed", "rrlb", what, error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_PERCENT: AbortIf = AbortIf { share: 200 };

    fn answers(all: u64, errors: u64) -> Answers {
        Answers { all, errors }
    }

    #[test]
    fn few_answers_are_not_judged() {
        assert_eq!(verdict(TWO_PERCENT, answers(0, 0), answers(19, 19), ""), None);
        assert!(verdict(TWO_PERCENT, answers(0, 0), answers(20, 20), "").is_some());
    }

    #[test]
    fn a_share_at_the_bound_is_allowed_and_one_above_is_not() {
        assert_eq!(verdict(TWO_PERCENT, answers(100, 0), answers(100, 2), ""), None);
        let why = verdict(TWO_PERCENT, answers(100, 0), answers(100, 3), "").expect("3 % are more than 2 %");
        assert!(why.contains("3 of 100") && why.contains("3.00 %") && why.contains("2.00 %"), "{why}");
    }

    #[test]
    fn errors_that_were_there_before_are_no_reason() {
        assert_eq!(verdict(TWO_PERCENT, answers(100, 10), answers(100, 10), ""), None);
        assert!(verdict(TWO_PERCENT, answers(100, 10), answers(100, 11), "").is_some());
    }

    #[test]
    fn what_breaks_late_does_not_hide_behind_what_went_well() {
        let abort = Abort { above: TWO_PERCENT, minute: answers(100, 0), until: answers(0, 0) };
        assert_eq!(harm(&abort, answers(10_000, 19), answers(19, 19)), None);
        let why = harm(&abort, answers(10_000, 20), answers(20, 20)).expect("all of the last 10 s");
        assert!(why.contains("20 of 20 answers in the last 10 s"), "{why}");
        // What was before the reload is not its fault.
        assert_eq!(harm(&abort, answers(30, 0), answers(100, 50)), None);
    }

    #[test]
    fn samples_reach_back_one_minute() {
        let mut samples = Samples::default();
        for second in 0..=200 {
            samples.push((second * 10, second));
        }
        assert_eq!(samples.minute(), answers(600, 60));
    }

    #[test]
    fn an_upstream_that_is_gone_does_not_count_backwards() {
        let mut samples = Samples::default();
        samples.push((100, 10));
        samples.push((40, 4));
        samples.push((50, 4));
        assert_eq!(samples.minute(), answers(10, 0));
    }
}
